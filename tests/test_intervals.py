import numpy as np
import pytest
from scipy import stats

from metadropout_nb.intervals import (
    Interval,
    VarianceComponents,
    bootstrap_interval,
    crossed_interval,
    mean_squares,
    seeds_needed,
    simulate_matrices,
    variance_components,
    verdict,
)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.001, 0.05), "helps"),
        ((-0.05, -0.001), "hurts"),
        ((0.001, 0.005), "helps"),
        ((-0.004, 0.009), "no difference beyond the margin"),
        ((-0.004, 0.011), "undecided"),
        ((-0.02, 0.02), "undecided"),
        ((-np.inf, np.inf), "one seed only"),
    ],
)
def test_the_rule_of_the_verdict(interval, expected):
    assert verdict(Interval(*interval)) == expected


def test_mean_squares_add_up_and_variances_are_recovered():
    matrices = simulate_matrices(
        300, 8, 40, VarianceComponents(4e-4, 9e-4, 25e-4), effect=0.1, seed=1
    )
    of_seeds, of_tasks, of_rest = mean_squares(matrices)
    total = ((matrices - matrices.mean((1, 2), keepdims=True)) ** 2).sum((1, 2))
    assert 7 * of_seeds + 39 * of_tasks + 7 * 39 * of_rest == pytest.approx(total)
    found = np.array(
        [[s.seeds, s.tasks, s.residual] for s in map(variance_components, matrices)]
    )
    assert (abs(found.mean(0) - [4e-4, 9e-4, 25e-4]) < 4 * stats.sem(found)).all()
    with pytest.raises(ValueError, match="two seeds and two tasks"):
        variance_components(matrices[0, :1])


# Standard deviations of seeds, tasks and rest: as measured at 28x28, tasks that matter,
# and nothing but the rest.
SPLITS = [(0.02, 0.015, 0.085), (0.005, 0.03, 0.08), (0, 0, 0.08)]


@pytest.mark.parametrize("sds", SPLITS)
@pytest.mark.parametrize("seeds", [5, 10, 20])
def test_a_planted_null_raises_false_alarms_at_five_percent(sds, seeds):
    nulls = simulate_matrices(
        1500, seeds, 150, VarianceComponents(*(sd**2 for sd in sds)), seed=seeds
    )
    low, high = crossed_interval(nulls)
    share = np.mean((low > 0) | (high < 0))
    assert abs(share - 0.05) < 3 * np.sqrt(0.05 * 0.95 / len(nulls)), share


def test_the_bootstrap_is_scipys_crossed():
    matrix = simulate_matrices(
        1, 10, 1000, VarianceComponents(0.005**2, 0.1**2, 0.09**2), effect=0.01
    )[0]
    ours = bootstrap_interval(matrix)
    assert ours == bootstrap_interval(matrix)

    def both(s, t, axis):
        return matrix[s[..., :, None], t[..., None, :]].mean((-2, -1))

    scipys = stats.bootstrap(
        (np.arange(10), np.arange(1000)),
        both,
        n_resamples=2000,
        batch=100,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert ours == pytest.approx(tuple(scipys), abs=0.15 * ours.half_width)


def test_the_number_of_seeds_needed_is_the_smallest():
    for sd in (0.001, 0.015, 0.025, 0.04):
        n = seeds_needed(sd)

        def half(n, sd=sd):
            return stats.t.ppf(0.975, min(n, 10) - 1) * sd / n**0.5

        assert half(n) <= 0.01 and (n == 2 or half(n - 1) > 0.01)
    with pytest.raises(ValueError, match="must be a number"):
        seeds_needed(float("nan"))
