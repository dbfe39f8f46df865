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


def margin_first(low, high, margin):
    "Asks about the margin before zero."
    if -margin < low and high < margin:
        return "no difference"
    return "helps" if low > 0 else "hurts" if high < 0 else "undecided"


def by_the_middle(low, high, margin):
    "Judges by the middle of the interval."
    middle = (low + high) / 2
    return (
        "no difference" if abs(middle) < margin else "helps" if middle > 0 else "hurts"
    )


def one_side(low, high, margin):
    "Forgets the lower end of the margin."
    if low > 0 or high < 0:
        return "helps" if low > 0 else "hurts"
    return "no difference" if high < margin else "undecided"


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
    "11.2": [margin_first, by_the_middle, one_side],
    "11.3": [no_seed, not_nested, twice],
    "11.4": [one_sign, coin, at_least_one],
    "11.5": [empty, three_seeds, no_gain],
}
