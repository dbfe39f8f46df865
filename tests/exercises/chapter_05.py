"""Answers of chapter 05 that look right and are not."""

import math

import numpy as np
import torch.nn.functional as F
from scipy import stats

from metadropout_nb.training import class_means


def in_bits(n_way):
    "A logarithm to base 2 gives bits, not nats."
    return 1 / n_way, math.log2(n_way)


def the_other_way_round(n_way):
    "Loss first."
    return math.log(n_way), 1 / n_way


def accuracy_alone(n_way):
    "One number where two are asked."
    return [1 / n_way]


def wrong_label_loss(n_way):
    "The loss of giving the wrong labels all but one share."
    return 1 / n_way, -math.log(1 - 1 / n_way)


def rounded(sd, half_width):
    "Rounds to the nearest where it should round up."
    return round((1.96 * sd / half_width) ** 2)


def not_squared(sd, half_width):
    "Forgets that the interval shrinks with the root."
    return math.ceil(1.96 * sd / half_width)


def one_sd(sd, half_width):
    "A standard error in place of a 95 % interval."
    return math.ceil((sd / half_width) ** 2)


def whole_width(sd, half_width):
    "Takes the half-width for the whole width."
    return math.ceil((2 * 1.96 * sd / half_width) ** 2)


def without_the_ten(self, support, support_y, query):
    "The cosine alone."
    prototypes = class_means(support, support_y, self.num_classes)
    return F.normalize(query, dim=-1) @ F.normalize(prototypes, dim=-1).mT


def means_of_directions(self, support, support_y, query):
    "Normalises before the mean, and not after it."
    prototypes = class_means(F.normalize(support, dim=-1), support_y, self.num_classes)
    return 10 * F.normalize(query, dim=-1) @ prototypes.mT


def by_reshaping(self, support, support_y, query):
    "Ignores the labels."
    prototypes = support.unflatten(-2, (self.num_classes, -1)).mean(-2)
    return 10 * F.normalize(query, dim=-1) @ F.normalize(prototypes, dim=-1).mT


def one_task_only(self, support, support_y, query):
    "Swaps the first two dimensions: right for one task, a batch raises."
    prototypes = class_means(support, support_y, self.num_classes)
    prototypes = F.normalize(prototypes, dim=-1).transpose(0, 1)
    return 10 * F.normalize(query, dim=-1) @ prototypes


def unpaired(a, b):
    "Forgets that the tasks are the same."
    spread = (a.var(ddof=1) + b.var(ddof=1)) / len(a)
    return (b - a).mean(), stats.t.ppf(0.975, len(a) - 1) * spread**0.5


def sd_of_the_difference(a, b):
    "The sd over tasks in place of the interval of the mean."
    return (b - a).mean(), (b - a).std(ddof=1)


def normal(a, b):
    "1.96 in place of Student's t, for 30 tasks."
    return (b - a).mean(), 1.96 * (b - a).std(ddof=1) / len(a) ** 0.5


def turned(a, b):
    "Subtracts the other way round."
    half_width = stats.t.ppf(0.975, len(a) - 1) * (b - a).std(ddof=1) / len(a) ** 0.5
    return (a - b).mean(), half_width


def two_seeds():
    "Too few."
    return [0.01, 0.02]


def setting_not_used():
    "Both trainings had the same setting."
    return [0.0, 0.0, 0.0]


def in_points():
    "Points of accuracy in place of fractions."
    return [2.0, -1.5, 3.0]


def their_mean():
    "One number in place of one per seed."
    return np.mean([0.01, 0.02, -0.01])


WRONG = {
    "05.1": [in_bits, the_other_way_round, accuracy_alone, wrong_label_loss],
    "05.2": [rounded, not_squared, one_sd, whole_width],
    "05.3": [without_the_ten, means_of_directions, by_reshaping, one_task_only],
    "05.4": [unpaired, sd_of_the_difference, normal, turned],
    "05.5": [two_seeds, setting_not_used, in_points, their_mean],
}
