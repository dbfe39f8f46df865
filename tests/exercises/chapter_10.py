"""Answers to the exercises of chapter 10 that look right and are not."""

import torch
import torch.nn.functional as F


def of_tasks(ratio, meta_batch):
    "The share that comes from tasks."
    return 1 / (1 + ratio)


def averaged_away(ratio, meta_batch):
    "As if a larger meta-batch averaged masks away, and not tasks."
    return ratio / (meta_batch + ratio)


def of_sd(ratio, meta_batch):
    "A share of standard deviations."
    return ratio**0.5 / (1 + ratio**0.5)


def luck_of_answers(before, after, sd):
    "Like coins: the root of m (1 - m)."
    return sd * (after * (1 - after) / (before * (1 - before))) ** 0.5


def upside_down(before, after, sd):
    "The ratio the wrong way round."
    return sd * before * (1 - before) / (after * (1 - after))


def room_above(before, after, sd):
    "Sees only the room above the mean."
    return sd * (1 - after) / (1 - before)


def all_pairs(n, rho):
    "Counts each image as a partner of itself."
    return 1 + n * rho


def not_divided(n, rho):
    "The variance of the mean, not times that of independent masks."
    return (1 + (n - 1) * rho) / n


def thirty(n, rho):
    "Right for 30 images only."
    return 1 + 29 * rho


def without_zero(gradients):
    "Divides by the length, which may be zero."
    directions = gradients / gradients.norm(dim=1, keepdim=True)
    return directions @ directions.T


def products(gradients):
    "Inner products, which grow with the length."
    return gradients @ gradients.T


def without_sign(gradients):
    "Takes a step back for a step ahead."
    directions = F.normalize(gradients, dim=1)
    return (directions @ directions.T).abs()


def neighbours(gradients):
    "Only successive steps."
    table, cosines = torch.eye(len(gradients)), F.cosine_similarity
    for i in range(len(gradients) - 1):
        table[i, i + 1] = table[i + 1, i] = cosines(*gradients[i : i + 2], dim=0)
    return table


def one_learner_twice():
    "Measures the same learner both times."
    return {"untrained": (0.2, 0.3), "trained": (0.2, 0.3)}


def in_eval_mode():
    "No masks are drawn, so nothing moves."
    return {"untrained": (0.0, 0.0), "trained": (0.0, 0.0)}


def one_arm():
    "The arm was never changed."
    return {"untrained": (0.2, 0.2), "trained": (0.3, 0.3)}


WRONG = {
    "10.1": [of_tasks, averaged_away, of_sd],
    "10.2": [luck_of_answers, upside_down, room_above],
    "10.3": [all_pairs, not_divided, thirty],
    "10.4": [without_zero, products, without_sign, neighbours],
    "10.5": [one_learner_twice, in_eval_mode, one_arm],
}
