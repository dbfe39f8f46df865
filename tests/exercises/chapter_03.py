"""Answers of chapter 03 that look right and are not."""

import torch
import torch.nn.functional as F

from metadropout_nb.meta_dropout import draw_mask


def divides(share, sites):
    "Shares multiply; it divides."
    return (1 - share) / sites


def what_stays(share, sites):
    "The share that each site keeps, and not the rate."
    return share ** (1 / sites)


def root_of_what_goes(share, sites):
    "Takes the root of what is lost."
    return (1 - share) ** (1 / sites)


def unscaled(h, p):
    "Drops, and does not scale."
    return h * (torch.rand(1, *h.shape[1:]) >= p)


def one_for_all_channels(h, p):
    "A mask `[1, 1, H, W]`."
    return h * F.dropout(torch.ones_like(h[:1, :1]), p)


def whole_channels(h, p):
    "Drops feature maps, not elements."
    return h * F.dropout2d(torch.ones_like(h[:1]), p)


def keeps_p(h, p):
    "Keeps what it should drop."
    return h * (torch.rand(1, *h.shape[1:]) < p) / p


def only_the_mask(h, p):
    "Forgets the activations."
    return F.dropout(torch.ones_like(h[:1]), p).expand_as(h)


def stacked(keys, channels, p):
    return torch.stack([draw_mask((1, channels, 1, 1), p, key) for key in keys])


def by_place(seed, tasks, site, channels, p):
    "Takes a task's place in the batch for its index."
    return stacked([(seed, i, site, 0, 0) for i in range(len(tasks))], channels, p)


def without_seed(seed, tasks, site, channels, p):
    "Ignores the mask seed."
    return stacked([(0, task, site, 0, 0) for task in tasks], channels, p)


def without_site(seed, tasks, site, channels, p):
    "Ignores the site."
    return stacked([(seed, task, 0, 0, 0) for task in tasks], channels, p)


def without_task(seed, tasks, site, channels, p):
    "Gives all tasks one mask."
    return stacked([(seed, 0, site, 0, 0) for _ in tasks], channels, p)


ONES = torch.ones(4, 3, 16, 16)


def never_separate(layer):
    "Takes a query mask of its own for no sharing at all."
    support, query = layer(ONES), layer(ONES, query=True)
    if torch.equal(support, ONES):
        return "none"
    if torch.equal(query, ONES):
        return "support"
    return "meta" if torch.equal(support, query) else "standard"


def never_none(layer):
    "Takes equal passes for a shared mask, also where there is none."
    support, query = layer(ONES), layer(ONES, query=True)
    if torch.equal(query, ONES):
        return "support"
    if not torch.equal(layer(ONES), support):
        return "standard"
    return "meta" if torch.equal(support, query) else "separate"


def forgets_the_query(layer):
    "Sends everything through as support."
    first, again = layer(ONES), layer(ONES)
    if torch.equal(first, ONES):
        return "none"
    return "meta" if torch.equal(first, again) else "standard"


def the_old_one(shape, p, rng):
    "Independent, 0 or 1 / (1 - p): ours again."
    return torch.from_numpy((rng.random(shape) >= p) / (1 - p))


def variance_for_deviation(shape, p, rng):
    "Takes the variance for the standard deviation."
    return torch.from_numpy(rng.normal(1, p / (1 - p), shape))


def around_zero(shape, p, rng):
    "Noise to add, where it is multiplied."
    return torch.from_numpy(rng.normal(0, (p / (1 - p)) ** 0.5, shape))


def ignores_the_generator(shape, p, rng):
    "The same mask for every task."
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return 1 + noise * (p / (1 - p)) ** 0.5


WRONG = {
    "03.1": [divides, what_stays, root_of_what_goes],
    "03.2": [unscaled, one_for_all_channels, whole_channels, keeps_p, only_the_mask],
    "03.3": [by_place, without_seed, without_site, without_task],
    "03.4": [never_separate, never_none, forgets_the_query],
    "03.5": [the_old_one, variance_for_deviation, around_zero, ignores_the_generator],
}
