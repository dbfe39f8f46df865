"""Answers to the exercises of chapter 09 that look right and are not."""

import numpy as np
from scipy import stats

from metadropout_nb.runs import Run


def other_sign(sd_a, sd_b, r, n_tasks):
    "The variance of a sum."
    return 1.96 * np.sqrt((sd_a**2 + sd_b**2 + 2 * r * sd_a * sd_b) / n_tasks)


def once(sd_a, sd_b, r, n_tasks):
    "Takes the covariance off once, not twice."
    return 1.96 * np.sqrt((sd_a**2 + sd_b**2 - r * sd_a * sd_b) / n_tasks)


def variances_apart(sd_a, sd_b, r, n_tasks):
    "Scales both variances, right only where the two are equal."
    return 1.96 * np.sqrt((sd_a**2 + sd_b**2) * (1 - r) / n_tasks)


def all_seeds(a, b):
    "A seed that is missing counts as 0."
    return sum(b.get(s, 0) - a.get(s, 0) for s in a.keys() | b.keys()) / 4


def by_order(a, b):
    "Pairs by place in the dictionary, not by seed."
    pairs = list(zip(a.values(), b.values(), strict=True))
    return sum(y - x for x, y in pairs) / len(pairs)


def wrong_way_round(a, b):
    "a - b."
    seeds = a.keys() & b.keys()
    return sum(a[seed] - b[seed] for seed in seeds) / len(seeds)


def tasks_only(matrix, rng):
    "Leaves the seeds as they are."
    return matrix[:, rng.integers(matrix.shape[1], size=matrix.shape[1])].mean()


def single_cells(matrix, rng):
    "Draws cells one by one: as if all were independent."
    return rng.choice(matrix.ravel(), matrix.size).mean()


def one_row_one_column(matrix, rng):
    "Draws a single seed."
    tasks = rng.integers(matrix.shape[1], size=matrix.shape[1])
    return matrix[rng.integers(matrix.shape[0])][tasks].mean()


def normal_factor(n, seeds):
    "1.96, whatever the number of seeds."
    d = np.random.default_rng(0).normal(0, 1, (n, seeds))
    half = 1.96 * d.std(1, ddof=1) / seeds**0.5
    return float((abs(d.mean(1)) > half).mean())


def ddof_0(n, seeds):
    "The right factor with a standard deviation that is too small."
    d = np.random.default_rng(0).normal(0, 1, (n, seeds))
    half = stats.t.ppf(0.975, seeds - 1) * d.std(1) / seeds**0.5
    return float((abs(d.mean(1)) > half).mean())


def one_sided_t(n, seeds):
    "5 % on each side."
    d = np.random.default_rng(0).normal(0, 1, (n, seeds))
    half = stats.t.ppf(0.95, seeds - 1) * d.std(1, ddof=1) / seeds**0.5
    return float((abs(d.mean(1)) > half).mean())


def two_arms():
    "No control."
    return [
        Run(arm=arm, seed=seed, n_way=20, data="omniglot")
        for seed in range(5)
        for arm in ("none", "meta")
    ]


def other_seeds():
    "Each arm has seeds of its own, so that nothing pairs up."
    return [
        Run(arm=arm, seed=10 * i + seed, n_way=20, data="omniglot")
        for seed in range(5)
        for i, arm in enumerate(("none", "standard", "meta"))
    ]


def run_already():
    "The protocol of the course's own study."
    return [
        Run(arm=arm, seed=seed, data="omniglot")
        for seed in range(5)
        for arm in ("none", "standard", "meta")
    ]


WRONG = {
    "09.1": [other_sign, once, variances_apart],
    "09.2": [all_seeds, by_order, wrong_way_round],
    "09.3": [tasks_only, single_cells, one_row_one_column],
    "09.4": [normal_factor, ddof_0, one_sided_t],
    "09.5": [two_arms, other_seeds, run_already],
}
