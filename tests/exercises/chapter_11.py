"""Answers to the exercises of chapter 11 that look right and are not."""

import numpy as np


def fractions(known, new):
    "A fraction, not points."
    return sum(known) / len(known) - sum(new) / len(new)


def turned_round(known, new):
    "The wrong way round."
    return 100 * (sum(new) / len(new) - sum(known) / len(known))


def first_seed(known, new):
    "One seed in place of their mean."
    return 100 * (known[0] - new[0])


def exactly(half_width, seeds, wanted):
    "Adds seeds one at a time."
    return min(28, max(seeds, int(np.ceil(seeds * (half_width / wanted) ** 2))))


def in_proportion(half_width, seeds, wanted):
    "As if half-widths shrank with the number of seeds."
    n = seeds
    while n < 28 and half_width * seeds / n > wanted:
        n += 4
    return n


def without_end(half_width, seeds, wanted):
    "Goes on beyond 28."
    n = seeds
    while half_width * (seeds / n) ** 0.5 > wanted:
        n += 4
    return n


def no_seed(seed, n, total):
    "Ignores the seed."
    return np.random.default_rng(0).permutation(total)[:n].tolist()


def not_nested(seed, n, total):
    "Another n gives another list."
    return np.random.default_rng((seed, n)).permutation(total)[:n].tolist()


def twice(seed, n, total):
    "May draw a character twice."
    return np.random.default_rng(seed).integers(0, total, n).tolist()


def one_sign(mean, sd):
    "Counts only six positive differences."
    from scipy.stats import norm

    return norm.cdf(mean / sd) ** 6


def coin(mean, sd):
    "As if the mean were zero."
    return 2 * 0.5**6


def at_least_one(mean, sd):
    "Five agree with the first, whose sign is free: right only where the mean is zero."
    from scipy.stats import norm

    return norm.cdf(abs(mean) / sd) ** 5


def empty():
    "Nothing."
    return {}


def three_seeds():
    "Too few seeds."
    return {"gap": 10.0, "gain": 1.0, "seeds": 3}


def no_gain():
    "A gain that nobody measured."
    return {"gap": 10.0, "gain": 0, "seeds": 5}


WRONG = {
    "11.1": [fractions, turned_round, first_seed],
    "11.2": [exactly, in_proportion, without_end],
    "11.3": [no_seed, not_nested, twice],
    "11.4": [one_sign, coin, at_least_one],
    "11.5": [empty, three_seeds, no_gain],
}
