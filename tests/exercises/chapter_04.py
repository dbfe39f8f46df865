"""Answers of chapter 04 that look right and are not."""

import torch
import torch.nn.functional as F


def divides_exactly(size):
    "Does not round down."
    return 64 * (size / 16) ** 2


def one_side(size):
    "Forgets that a map has two sides."
    return 64 * (size // 16)


def rounds_up(size):
    "Pools that keep an odd row."
    return 64 * -((-size // 16) ** 2)


def without_filters(size):
    "Forgets the 64 maps."
    return (size // 16) ** 2


def unsorted(values, p):
    "Does not sort."
    return sum(p**k * value for k, value in enumerate(values))


def unscaled(values, p):
    "Forgets that what is kept is multiplied by 1 / (1 - p)."
    ordered = sorted(values, reverse=True)
    return sum((1 - p) * p**k * value for k, value in enumerate(ordered))


def smallest_first(values, p):
    "Sorts the wrong way round."
    return sum(p**k * value for k, value in enumerate(sorted(values)))


def two_at_most(values, p):
    "Takes the two largest only."
    first, second, *_ = sorted(values, reverse=True)
    return first + p * second


def without_others(embed, images, others):
    "Asks whether the images see each other, and never uses the others."
    alone = torch.cat([embed(image[None]) for image in images])
    return bool((alone - embed(images)).abs().max() > 1e-4)


def only_the_first(embed, images, others):
    "Looks at one image where any of them may change."
    beside = embed(torch.cat([images, others]))
    return bool((embed(images) - beside[: len(images)])[0].abs().max() > 1e-4)


def a_tensor(embed, images, others):
    "Returns a tensor where a bool is asked."
    beside = embed(torch.cat([images, others]))[: len(images)]
    return (embed(images) - beside).abs().max() > 1e-4


def other_rows(embed, images, others):
    "Compares with the last rows, which are other images."
    beside = embed(torch.cat([images, others]))[-len(images) :]
    return bool((embed(images) - beside).abs().max() > 1e-4)


def unbiased(x, eps=1e-5):
    "Divides by the number of values less one."
    var, mean = torch.var_mean(x, (1, 3, 4), keepdim=True)
    return (x - mean) / (var + eps).sqrt()


def per_sample(x, eps=1e-5):
    "Normalises each sample by itself."
    var, mean = torch.var_mean(x, (3, 4), correction=0, keepdim=True)
    return (x - mean) / (var + eps).sqrt()


def all_channels(x, eps=1e-5):
    "One mean for all channels of a task."
    var, mean = torch.var_mean(x, (1, 2, 3, 4), correction=0, keepdim=True)
    return (x - mean) / (var + eps).sqrt()


def all_tasks(x, eps=1e-5):
    "The flattened batch, once more."
    return F.batch_norm(x.flatten(0, 1), None, None, training=True).view_as(x)


def nothing_masked(block, x):
    "No mask at all has the right mean."
    return block.pool(F.relu(block.norm(block.conv(x))))


def hardly_masked(block, x):
    "No mask, and a factor that hides it."
    return 0.999 * nothing_masked(block, x)


def rescaled(block, x):
    "The mask where it was, and a factor that mends the mean."
    y = block(x)
    return y * nothing_masked(block, x).mean() / y.mean()


def before_relu(block, x):
    "Between batch norm and ReLU: still before the pool."
    return block.pool(F.relu(block.dropout(block.norm(block.conv(x)))))


def after_the_pool_unscaled(block, x):
    "After the pool, with the factor taken out again."
    y = block.pool(F.relu(block.norm(block.conv(x))))
    return block.dropout(y) * (1 - block.dropout.p)


WRONG = {
    "04.1": [divides_exactly, one_side, rounds_up, without_filters],
    "04.2": [unsorted, unscaled, smallest_first, two_at_most],
    "04.3": [without_others, only_the_first, a_tensor, other_rows],
    "04.4": [unbiased, per_sample, all_channels, all_tasks],
    "04.5": [
        nothing_masked,
        hardly_masked,
        rescaled,
        before_relu,
        after_the_pool_unscaled,
    ],
}
