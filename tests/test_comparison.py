import json
import subprocess
import sys
from time import perf_counter

import numpy as np
import pytest
import torch
from conftest import ROOT
from distributed import Client, LocalCluster
from filelock import FileLock
from joblib import parallel_config
from scipy import stats

from metadropout_nb import comparison
from metadropout_nb.comparison import (
    CLAIMS,
    FIRST_LOOK,
    MAIN,
    Comparison,
    Difference,
    Interval,
    Protocol,
    Rows,
    Run,
    VarianceComponents,
    answers,
    arm_label,
    bootstrap_interval,
    build_learner,
    compare_all,
    corrected_p_values,
    crossed_interval,
    execute,
    frozen_tasks,
    group_results,
    load_results,
    load_split,
    mean_squares,
    missing_rows,
    paired_differences,
    planned_runs,
    rank_learners,
    seeds_needed,
    simulate_matrices,
    split_protocols,
    spread_changes,
    sweep,
    t_interval,
    train_learner,
    variance_components,
    verdict,
)
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.training import evaluate

TINY = {"size": 16, "tasks": 4, "test_tasks": 3, "meta_batch": 2, "test_query": 2}


def result(
    learner="original", arm="none", seed=0, accuracies=(0.5, 0.7, 0.9), **settings
):
    run = Run(learner, arm, seed, test_tasks=len(accuracies), **settings)
    return {
        "run": comparison.asdict(run),
        "accuracies": list(accuracies),
        "losses": [1.0] * len(accuracies),
    }


def test_arms_of_a_seed_share_weights_and_tasks():
    def start(arm, seed):
        run = Run(arm=arm, seed=seed, **TINY)
        return torch.cat(
            [p.flatten() for p in build_learner(run).parameters()]
        ), frozen_tasks(run)

    (w0, t0), (w1, t1), (w2, t2) = start("none", 0), start("meta", 0), start("meta", 1)
    assert torch.equal(w0, w1) and not torch.equal(w0, w2)
    assert torch.equal(t0.query, t1.query) and torch.equal(t0.query, t2.query)


def test_fewer_frozen_tasks_are_the_first_of_more():
    run = Run(**TINY)
    assert torch.equal(frozen_tasks(run, 5)[:3].support, frozen_tasks(run).support)


def test_training_and_test_characters_are_disjoint():
    train, test = load_split("glyphs", 16)
    assert not set(train.names) & set(test.names)
    alike = (train.images.flatten(1)[:, None] == test.images.flatten(1)).all(-1)
    assert not alike.any()


def test_a_run_is_reproducible_and_tells_everything():
    first, second = execute(Run(**TINY)), execute(Run(**TINY))
    assert (
        first["accuracies"] == second["accuracies"]
        and first["losses"] == second["losses"]
    )
    assert Run(**first["run"]) == Run(**TINY)
    assert first["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(first["training"]["losses"]) == 2


def test_different_runs_have_different_names():
    runs = [
        Run(),
        Run(seed=1),
        Run(arm="none"),
        Run(lr=0.01),
        Run(n_query=3),
        Run(meta_batch=4),
        Run(k_shot=5),
    ]
    assert len({run.name for run in runs}) == len(runs)


def test_a_sweep_writes_one_file_a_run_and_does_not_repeat_it(tmp_path, monkeypatch):
    runs = [Run(arm=arm, **TINY) for arm in ("none", "meta")]
    first = sweep(runs[:1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{runs[0].name}.json"]
    done, real = [], execute
    monkeypatch.setattr(
        comparison, "execute", lambda run, *rest: done.append(run) or real(run, *rest)
    )
    both = sweep(runs, tmp_path)
    assert done == runs[1:] and both[0] == first[0]
    assert both == [
        r
        for arm in ("none", "meta")
        for r in load_results(tmp_path)
        if r["run"]["arm"] == arm
    ]


def test_a_killed_sweep_leaves_no_half_file_and_goes_on(tmp_path):
    code = f"""
import os
from pathlib import Path
from metadropout_nb.comparison import Run, sweep
real = Path.write_text
def write(self, text, encoding=None):
    if '"arm": "meta"' in text:
        real(self, text[:8]); os._exit(9)
    return real(self, text, encoding)
Path.write_text = write
sweep([Run(arm=arm, **{TINY!r}) for arm in ("none", "meta")], {str(tmp_path)!r})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    (finished,) = tmp_path.glob("*.json")
    stamp = finished.stat().st_mtime_ns
    results = sweep([Run(arm=arm, **TINY) for arm in ("none", "meta")], tmp_path)
    assert len(results) == 2 and finished.stat().st_mtime_ns == stamp


def test_a_damaged_result_is_named_and_run_again(tmp_path):
    run = Run(**TINY)
    (good,) = sweep([run], tmp_path)
    path = tmp_path / f"{run.name}.json"
    for damage in (
        "",
        "{",
        "{}",
        path.read_text()[:-40],
        json.dumps(good | {"accuracies": [0.5]}),
    ):
        path.write_text(damage)
        with pytest.raises(ValueError, match=f"{path.name} is not a result"):
            load_results(tmp_path)
        with pytest.warns(
            UserWarning, match=r"runs it again \(now kept as .*\.old\d\)"
        ):
            (again,) = sweep([run], tmp_path)
        assert again["accuracies"] == good["accuracies"]


def test_a_sweep_on_a_dask_cluster(tmp_path):
    runs = [Run(seed=seed, **TINY) for seed in range(2)]
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    )
    with cluster, Client(cluster), parallel_config(backend="dask"):
        there = sweep(runs, tmp_path / "there", jobs=-1)
    here = sweep(runs, tmp_path / "here")
    assert [one["accuracies"] for one in there] == [one["accuracies"] for one in here]
    assert [one["losses"] for one in there] == [one["losses"] for one in here]


def test_a_result_of_another_run_is_kept_aside(tmp_path):
    run = Run(**TINY)
    (good,) = sweep([run], tmp_path)
    path = tmp_path / f"{run.name}.json"
    others = (
        good | {"run": good["run"] | {"n_query": 9}},
        good | {"run": good["run"] | {"of the future": 1}},
    )
    for n, other in enumerate(others, 1):
        path.write_text(json.dumps(other))
        with pytest.warns(
            UserWarning,
            match=rf"(of another run|of the future).*kept as .*\.json\.old{n}",
        ) as told:
            assert sweep([run], tmp_path)[0]["accuracies"] == good["accuracies"]
        assert len(told) == 1
    assert [
        json.loads(path.with_name(f"{path.name}.old{n}").read_text()) for n in (1, 2)
    ] == list(others)


@pytest.mark.parametrize("error", [FloatingPointError, RuntimeError, OSError])
def test_a_run_that_fails_is_named_and_the_others_finish(tmp_path, monkeypatch, error):
    def execute(run, progress, checkpoint):
        if run.seed == 1:
            raise error("the loss of training task 5 is not finite")
        return result(
            run.learner,
            run.arm,
            run.seed,
            **{k: v for k, v in TINY.items() if k != "test_tasks"},
        )

    monkeypatch.setattr(comparison, "execute", execute)
    runs = [Run(arm="none", seed=seed, **TINY) for seed in range(4)]
    told = f"1 of 4 runs failed, all others are finished:\n{runs[1].name}: {error.__name__}: the loss"
    with pytest.raises(ValueError, match=told):
        sweep(runs, tmp_path)
    assert [path.stem for path in sorted(tmp_path.glob("*.json"))] == [
        run.name for run in runs if run.seed != 1
    ]


@pytest.mark.parametrize("settings", [{"k_shot": 19}, {"n_way": 120}])
def test_what_cannot_be_tested_is_found_out_before_the_training(settings, monkeypatch):
    monkeypatch.setattr(
        comparison, "train_learner", lambda *_: pytest.fail("it was trained")
    )
    with pytest.raises(ValueError, match="drawings|characters|classes"):
        execute(Run("proto", **TINY | settings))


@pytest.mark.parametrize(
    "accuracies",
    [[50, 60, 70], [0.5, -0.1, 0.5], [True, False, True], [0.5, float("nan"), 0.5]],
)
def test_accuracies_are_fractions(tmp_path, accuracies):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result(accuracies=accuracies)))
    with pytest.raises(
        ValueError, match=r"3 test tasks, but 3 accuracies, [0-2] of them sound"
    ):
        comparison.read_result(path)


def test_a_run_asked_for_twice_is_told_twice(tmp_path):
    assert (
        len(sweep([Run(**TINY)] * 2, tmp_path)) == 2
        and len(list(tmp_path.iterdir())) == 1
    )


@pytest.mark.parametrize("other_dies", [False, True])
def test_two_sweeps_on_one_folder_share_the_work(tmp_path, monkeypatch, other_dies):
    first, second = (Run(seed=seed, **TINY) for seed in range(2))
    executed = []
    other = FileLock(tmp_path / f"{first.name}.lock")
    other.acquire()

    def told(run):
        return {
            "run": comparison.asdict(run),
            "accuracies": [0.5] * 3,
            "losses": [1.0] * 3,
        }

    def execute(run, progress, checkpoint):
        executed.append(run)
        if run == second:  # meanwhile the other sweep finishes the first run, or dies
            if not other_dies:
                comparison.write_json(tmp_path / f"{first.name}.json", told(first))
                (tmp_path / f"{first.name}.lock").unlink()
            other.release()
        return told(run)

    monkeypatch.setattr(comparison, "execute", execute)
    sweep([first, second], tmp_path)
    assert executed == ([second, first] if other_dies else [second])
    assert not list(tmp_path.glob("*.lock"))


def test_no_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results"):
        load_results(tmp_path)
    with pytest.raises(ValueError, match="nothing to compare"):
        group_results([])


def test_dose_and_channels_are_arms_and_mask_seeds_a_protocol():
    runs = [
        Run(arm="none"),
        Run(),
        Run(dose=2),
        Run(whole_channels=True),
        Run(dose=0.5, whole_channels=True),
    ]
    assert [arm_label(run) for run in runs] == [
        "none",
        "meta",
        "meta x2",
        "meta, channels",
        "meta x0.5, channels",
    ]
    assert len({Protocol.of(run) for run in runs}) == 1
    others = [
        Run(size=105),
        Run(k_shot=5),
        Run(tasks=500),
        Run(lr=0.01),
        Run(mask_seed=1),
        Run(mask_seed=1, seed=1),
    ]
    protocols = {Protocol.of(run) for run in [Run(), *others]}
    assert (
        len(protocols)
        == len({p.name for p in protocols})
        == len({p.slug for p in protocols})
        == 7
    )
    assert Protocol.of(Run(mask_seed=1)) == Protocol.of(Run(mask_seed=2))
    assert "only the masks differ (seed 0)" in Protocol.of(Run(mask_seed=3)).name


def test_every_setting_is_either_varied_or_part_of_the_protocol():
    settings = dict(Protocol.of(Run()).settings)
    assert settings.keys() | set(comparison.VARIED) == {
        f.name for f in comparison.fields(Run)
    }


def test_equal_numbers_are_one_run():
    assert Run(dose=2).name == Run(dose=2.0).name and Run(lr=1).name == Run(lr=1.0).name


def test_protocols_are_split_that_with_most_runs_first():
    few = [result(seed=s, size=105) for s in range(2)]
    many = [result(arm=arm, seed=s) for arm in ("none", "meta") for s in range(2)]
    masks = [result(arm="meta", mask_seed=s) for s in range(3)]
    protocols = split_protocols(few + masks + many)
    assert [len(of) for of in protocols.values()] == [4, 3, 2] and list(
        protocols.values()
    )[0] == many


def test_results_of_older_and_of_other_versions_go_together():
    old, new = result(), result(arm="meta") | {"versions": {"torch": "9.9"}}
    for name in ("dose", "whole_channels", "mask_seed"):
        del old["run"][name]
    assert len(paired_differences(group_results([new, old]))) == 1


def test_variants_are_compared_with_the_plain_baseline():
    results = [result(seed=s) for s in range(3)]
    results += [
        result(arm="meta", seed=s, accuracies=(0.6, 0.8, 1.0), dose=2) for s in range(3)
    ]
    results += [
        result(arm="meta", seed=s, accuracies=(0.4, 0.6, 0.8), whole_channels=True)
        for s in range(3)
    ]
    found = {d.arm: d.mean for d in paired_differences(group_results(results))}
    assert found == pytest.approx({"meta x2": 0.1, "meta, channels": -0.1})


def test_a_run_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="two results of one run, original-none"):
        group_results([result(), result()])


def test_differences_pair_up_by_seed():
    results = [result(seed=s, accuracies=(0.5 + s / 10, 0.6, 0.7)) for s in (0, 1, 2)]
    results += [
        result(arm="meta", seed=s, accuracies=(0.6 + s / 10, 0.6, 0.7 + s / 100))
        for s in (2, 1, 5)
    ]
    (difference,) = paired_differences(group_results(results))
    assert difference.seeds == (1, 2) and difference.matrix == pytest.approx(
        np.array([[0.1, 0, 0.01], [0.1, 0, 0.02]])
    )
    expected = np.array([0.1 + 0.01, 0.1 + 0.02]) / 3
    assert difference.by_seed == pytest.approx(expected)
    low, high = stats.t.interval(0.95, 1, expected.mean(), stats.sem(expected))
    assert difference.mean == pytest.approx(
        expected.mean()
    ) and difference.over_seeds == pytest.approx((low, high))
    assert "over 2 seeds" in str(difference)


def test_one_seed_has_an_interval_over_tasks_and_no_verdict():
    (difference,) = paired_differences(
        group_results([result(), result(arm="meta", accuracies=(0.6, 0.7, 0.8))])
    )
    by_task = np.array([0.1, 0.0, -0.1])
    assert difference.ci95 == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(by_task))
    assert "3 tasks of one seed" in str(difference)
    assert difference.verdict == "one seed only" and np.isnan(difference.p_value)
    for interval in (difference.interval, difference.over_seeds, difference.bootstrap):
        assert interval == (-np.inf, np.inf)


@pytest.mark.filterwarnings("error")
def test_arms_that_are_one_and_the_same():
    same = Difference("eb", "meta x0", "none", tuple(range(5)), np.zeros((5, 50)))
    assert (
        same.interval == same.over_seeds == same.bootstrap == (0, 0)
        and same.p_value == 1
    )
    assert same.verdict == "no difference beyond the margin" and corrected_p_values(
        [same, same]
    ).tolist() == [1, 1]
    shifted = Difference("eb", "meta", "none", tuple(range(5)), np.full((5, 50), 0.03))
    assert (
        shifted.over_seeds == pytest.approx((0.03, 0.03))
        and shifted.p_value == 0
        and shifted.verdict == "helps"
    )


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [(2, "too few seeds"), (3, "too few seeds"), (4, "too few seeds"), (5, "helps")],
)
def test_seeds_that_agree_by_luck_do_not_make_a_verdict(seeds, expected):
    assert (
        Difference(
            "eb", "meta", "none", tuple(range(seeds)), np.full((seeds, 50), 0.03)
        ).verdict
        == expected
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


@pytest.mark.parametrize("seeds", [5, 25])
def test_verdict_interval_and_p_value_of_a_difference_are_one_test(seeds):
    matrix = simulate_matrices(
        1, seeds, 50, VarianceComponents(0.05**2, 0.02**2, 0.01**2), seed=seeds
    )[0]

    def shifted(by):
        return Difference(
            "eb", "meta", "none", tuple(range(seeds)), matrix - matrix.mean() + by
        )

    half = shifted(0).interval.half_width
    for by, said, below in (
        (half * 1.001, "helps", True),
        (half * 0.999, "undecided", False),
    ):
        assert shifted(by).verdict == said and (shifted(by).p_value < 0.05) == below
    assert shifted(half).p_value == pytest.approx(0.05)
    assert shifted(shifted(0).bootstrap.half_width).verdict == "undecided"


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


# Standard deviations of seeds, tasks and rest: as measured at 28x28, tasks that matter, and nothing but the rest.
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


def test_simpler_intervals_raise_more():
    "Why the verdict rests on neither of them."

    def alarms(intervals):
        return np.mean([low > 0 or high < 0 for low, high in intervals])

    nulls = simulate_matrices(
        400, 5, 300, VarianceComponents(0.02**2, 0, 0.02**2), seed=1
    )
    assert alarms(bootstrap_interval(m, 500) for m in nulls) > 0.1
    nulls = simulate_matrices(
        400, 30, 200, VarianceComponents(0.005**2, 0.03**2, 0.08**2), seed=1
    )
    assert alarms(t_interval(m.mean(1)) for m in nulls) > 0.2


def test_looks_are_paid_for():
    "Seeds added until the interval is narrow: more than 5 % false alarms, but for the first look's t."
    nulls = simulate_matrices(20_000, 30, 2, VarianceComponents(0.02**2, 0, 0), seed=3)
    alarms = {}
    for max_df in (np.inf, FIRST_LOOK - 1):
        going, alarms[max_df] = np.ones(len(nulls), dtype=bool), 0.0
        for seeds in comparison.LOOKS:
            found = crossed_interval(nulls[:, :seeds], max_df)
            stop = going & (
                (found.half_width <= comparison.MARGIN)
                | (seeds == comparison.LOOKS[-1])
            )
            alarms[max_df] += ((found.low > 0) | (found.high < 0))[stop].sum() / len(
                nulls
            )
            going &= ~stop
        assert not going.any()
    assert alarms[np.inf] > 0.056 and abs(alarms[FIRST_LOOK - 1] - 0.05) < 0.006


def test_the_bootstrap_is_scipys_crossed_and_quick():
    matrix = simulate_matrices(
        1, 10, 1000, VarianceComponents(0.005**2, 0.1**2, 0.09**2), effect=0.01
    )[0]
    start = perf_counter()
    ours = bootstrap_interval(matrix)
    assert perf_counter() - start < 2 and ours == bootstrap_interval(matrix)

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


@pytest.fixture(scope="module")
def stored():
    return load_results(ROOT / "results")


@pytest.fixture(scope="module")
def main(stored):
    return compare_all(stored)[MAIN]


def test_a_planted_effect_is_found_in_real_results_and_a_null_is_not(main):
    "The arm's own results, moved: by what makes the mean difference -3 points, +3 points, or none."
    tried = 0
    for d in main.differences:
        if len(d.seeds) < 8:
            continue
        tried += 1

        def moved(effect, d=d):
            return Difference(
                d.learner, d.arm, d.baseline, d.seeds, d.matrix - d.mean + effect
            )

        assert moved(-0.03).verdict == "hurts" and moved(0.03).verdict == "helps", (
            d.learner
        )
        nulls = simulate_matrices(
            500, *d.matrix.shape, variance_components(d.matrix), seed=len(d.seeds)
        )
        low, high = crossed_interval(nulls)
        assert abs(np.mean((low > 0) | (high < 0)) - 0.05) < 3 * np.sqrt(
            0.05 * 0.95 / 500
        )
    assert tried >= 2


def test_stored_results_are_what_their_names_say(stored):
    names = {path.stem for path in (ROOT / "results").glob("*.json")}
    assert names == {Run(**one["run"]).name for one in stored}


def test_stored_protocols_have_the_tables_and_figures_that_fit_them(stored):
    for protocol, one in compare_all(stored).items():
        about = dict(protocol.settings)
        about_ours = [about[name] for name in ("data", "n_way", "k_shot", "tasks")] == [
            "omniglot",
            5,
            1,
            2000,
        ]
        claimed = about_ours and bool(one.of_arm())
        assert set(one.figures()) == {"comparison"} | (
            {"claims"} if claimed else set()
        ), protocol.name
        tables = one.tables()
        assert ("Claimed gains and ours, in points" in tables) == (
            about_ours and bool(one.differences)
        )
        assert ("Paired differences in points ± 95 % interval" in tables) == bool(
            one.differences
        )
        assert any("claimed %" in row for row in one.spread_rows()) == claimed


def test_several_claims_are_corrected_together():
    p = [0.01, 0.02, 0.5]
    fake = [Difference("eb", "meta", "none", (0,), np.zeros((1, 2))) for _ in range(4)]
    told = dict(zip(map(id, fake), [*p, float("nan")], strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Difference, "p_value", property(lambda d: told[id(d)]))
        corrected = corrected_p_values(fake)
    assert corrected[:3] == pytest.approx([0.03, 0.03, 0.5]) and np.isnan(corrected[3])
    assert len(corrected_p_values([])) == 0


def test_correction_holds_with_a_shared_baseline():
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        base = rng.normal(0, 0.01, (10, 2))
        arms = [
            Difference(
                "eb",
                f"{i}",
                "none",
                tuple(range(10)),
                rng.normal(0, 0.01, (10, 2)) - base,
            )
            for i in range(4)
        ]
        alarms += (corrected_p_values(arms) < 0.05).any()
    assert alarms / 400 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_a_collapsed_learner_has_no_spread_to_compare():
    results = [result(seed=seed, accuracies=(0.5, 0.7, 0.9)) for seed in range(3)]
    results += [
        result(
            arm="meta", seed=seed, accuracies=(0.2,) * 3 if seed else (0.4, 0.6, 0.8)
        )
        for seed in range(3)
    ]
    (change,) = spread_changes(group_results(results))
    assert change.by_seed == pytest.approx([0])


def test_change_of_spread_is_a_ratio_seed_by_seed():
    rng = np.random.default_rng(0)
    results = []
    for seed in range(6):
        base = rng.normal(0.7, 0.05 * (1 + seed), 50)
        results += [result(seed=seed, accuracies=base.tolist())]
        results += [
            result(
                arm="meta",
                seed=seed,
                accuracies=(0.9 + (1.2 + seed / 100) * (base - 0.7)).tolist(),
            )
        ]
    (change,) = spread_changes(group_results(results))
    logs = np.log(1.2 + np.arange(6) / 100)
    assert change.by_seed == pytest.approx(logs) and change.mean == pytest.approx(
        np.exp(logs.mean()) - 1
    )
    assert change.interval == pytest.approx(
        np.expm1(stats.t.interval(0.95, 5, logs.mean(), stats.sem(logs)))
    )


def planted(learner, mean, seeds=10, seed=0):
    matrix = simulate_matrices(
        1, seeds, 50, VarianceComponents(0.01**2, 0, 0.05**2), seed=seed
    )[0]
    return Difference(
        learner, "meta", "none", tuple(range(seeds)), matrix - matrix.mean() + mean
    )


def test_ranking_and_its_doubt():
    clear = rank_learners(
        [planted("eb", 0.01), planted("original", 0.1), planted("maml", -0.1)]
    )
    assert {name: shares.argmax() for name, shares in clear.items()} == {
        "eb": 1,
        "original": 0,
        "maml": 2,
    }
    assert all(
        shares.max() > 0.99 and shares.sum() == pytest.approx(1)
        for shares in clear.values()
    )
    open_ = rank_learners([planted("eb", 0), planted("original", 0, seed=1)])
    assert all(0.4 < share < 0.6 for shares in open_.values() for share in shares)
    assert "maml" not in rank_learners(
        [planted("eb", 0), planted("maml", 0.1, seeds=1)]
    )
    assert rank_learners([]) == {}
    with pytest.raises(ValueError, match="choose an arm"):
        rank_learners([planted("eb", 0), planted("eb", 1)])


def test_the_number_of_seeds_needed_is_the_smallest():
    for sd in (0.001, 0.015, 0.025, 0.04):
        n = seeds_needed(sd)

        def half(n, sd=sd):
            return stats.t.ppf(0.975, min(n, 10) - 1) * sd / n**0.5

        assert half(n) <= 0.01 and (n == 2 or half(n - 1) > 0.01)
    with pytest.raises(ValueError, match="must be a number"):
        seeds_needed(float("nan"))


def test_the_claims_are_those_of_the_origin():
    assert {k: round(100 * c.gain, 2) for k, c in CLAIMS.items()} == {
        "eb": 1.5,
        "original": 2.16,
        "maml": 1.2,
    }
    assert {k: round(100 * c.spread, 1) for k, c in CLAIMS.items()} == {
        "eb": 14.4,
        "original": -11.7,
        "maml": -8.9,
    }


def test_the_luck_of_a_claim_is_that_of_its_test_tasks():
    rng, claim = np.random.default_rng(0), CLAIMS["original"]
    without, with_it = (
        rng.normal(mean, sd, (4000, 200)) for mean, sd in (claim.without, claim.with_it)
    )
    gains, spreads = (
        with_it.mean(1) - without.mean(1),
        with_it.std(1, ddof=1) / without.std(1, ddof=1) - 1,
    )
    assert claim.gain_interval == pytest.approx(
        np.quantile(gains, (0.025, 0.975)) / 100, abs=0.001
    )
    assert claim.spread_interval == pytest.approx(
        np.quantile(spreads, (0.025, 0.975)), abs=0.01
    )


def sample(learner, arm, seed, mean, tasks_tested=1000, **settings):
    rng = np.random.default_rng([seed, settings.get("mask_seed") or 0])
    accuracies = np.clip(rng.normal(mean, 0.05, tasks_tested), 0, 1)
    return result(
        learner, arm, seed, tuple(accuracies), **{"data": "omniglot"} | settings
    )


def test_masks_alone_stand_beside_the_seeds():
    plain = [
        sample("original", arm, seed, 0.8)
        for arm in ("none", "meta", "support")
        for seed in range(3)
    ]
    masks = [
        sample("original", "meta", 0, 0.8 + seed / 20, mask_seed=seed)
        for seed in range(1, 4)
    ]

    def varied(results):
        return [
            (row["arm"], row["varied"], row["runs"])
            for row in compare_all(results)[MAIN].variance_rows()
        ]

    seeds = [(arm, "seeds", "3") for arm in ("none", "meta", "support")]
    assert varied(plain) == seeds and varied(plain + masks) == [
        *seeds,
        ("meta", "masks alone", "3"),
    ]
    of_masks = compare_all(plain + masks)[Protocol.of(Run(**masks[0]["run"]))]
    assert of_masks.rows()[0]["mask seeds"] == "3" and not of_masks.difference_rows()
    assert len(of_masks.plot().axes) == 1


def test_answers_agree_with_the_tables():
    results = [
        sample("original", arm, seed, mean)
        for seed in range(5)
        for arm, mean in (("none", 0.8), ("meta", 0.9))
    ]
    results += [sample("eb", arm, 0, 0.8) for arm in ("none", "meta")]
    results += [sample("maml", "none", seed, 0.8) for seed in range(3)] + [
        sample("maml", "meta", 0, 0.8, size=105)
    ]
    told = answers(results)
    assert list(told) == list(CLAIMS)
    comparison = compare_all(results)[MAIN]
    difference = comparison.of_arm()["original"]
    assert told["original"].startswith(
        f"**Original Meta Network: {difference.verdict}.** Over 5 seeds"
    )
    assert (
        f"{100 * difference.mean:+.2f}" in told["original"]
        and str(difference.interval) in told["original"]
    )
    without = np.mean(
        [comparison.reports["original", "none"][seed].accuracy for seed in range(5)]
    )
    assert f"from {without:.1%}" in told["original"]
    assert (
        "The claim, +2.16 points (one run without and one with, 105x105), lies outside this interval"
        in told["original"]
    )
    assert told["original"].endswith("Against ordinary dropout it was not run.")
    t, sd = stats.t.ppf(0.975, 4), difference.by_seed.std(ddof=1)
    assert difference.prediction_interval.half_width == pytest.approx(
        t * sd * (6 / 5) ** 0.5
    )
    assert "one seed only" in told["eb"] and "interval" not in told["eb"]
    assert told["maml"].startswith("**MAML: not run yet.**")
    assert [row["ours"] for row in comparison.claim_rows()] == [
        "+0.00",
        f"{100 * difference.mean:+.2f}",
        "not run yet",
    ]


@pytest.mark.parametrize("seeds", [4, 5])
def test_answers_tell_what_ordinary_dropout_does(seeds):
    means = {"none": 0.8, "standard": 0.84, "meta": 0.9}
    results = [
        sample("original", arm, seed, mean)
        for seed in range(seeds)
        for arm, mean in means.items()
    ]
    against = Comparison(results, baseline="standard").of_arm()["original"]
    told = answers(results)["original"]
    if seeds < 5:
        assert told.endswith(
            "Against ordinary dropout there are too few seeds to say (4)."
        )
        assert "Over 4 seeds the difference is" in told and "lies" not in told
        return
    assert (
        f"Against ordinary dropout at the same rates the change is {100 * against.mean:+.2f} points"
        in told
    )
    assert (
        against.mean == pytest.approx(0.06, abs=0.02) and str(against.interval) in told
    )


def test_answers_are_of_the_main_protocol_however_many_others_there_are():
    glyphs = [
        sample("original", arm, seed, 0.9, data="glyphs")
        for arm in ("none", "meta")
        for seed in range(3)
    ]
    ours = [
        sample("original", arm, seed, 0.8)
        for arm in ("none", "meta")
        for seed in range(2)
    ]
    assert answers(glyphs + ours) == answers(ours)
    assert all("not run yet" in told for told in answers(glyphs).values())


def test_a_baseline_that_no_result_has():
    with pytest.raises(
        ValueError, match="unknown baseline 'nnone': choose one of meta, none"
    ):
        Comparison([result(arm="meta")], baseline="nnone")
    with pytest.raises(ValueError, match="nothing to compare"):
        Comparison([])


def test_a_table_of_rows_with_different_columns():
    table = Rows([{"arm": "none", "seeds": "5"}, {"arm": "meta", "mask seeds": "10"}])
    assert [line.split() for line in repr(table).splitlines()] == [
        ["arm", "seeds", "mask", "seeds"],
        ["none", "5"],
        ["meta", "10"],
    ]
    assert "<tr><td>meta</td><td></td><td>10</td></tr>" in table._repr_html_()


def test_one_seed_does_not_stretch_the_figure_of_the_claims():
    one = Comparison([sample("maml", arm, 0, 0.8) for arm in ("none", "meta")])
    gain, spread = one.figures()["claims"].axes
    assert gain.get_xlim()[0] > -20 and spread.get_xlim()[0] > -50


def test_the_plan_grows_with_the_width_and_not_with_the_sign():
    def finished(mean, sd, seeds=10):
        rng = np.random.default_rng(0)
        meta = 0.8 + mean + sd * rng.normal(size=(30, 1)) + np.zeros((30, 1000))
        results = [
            result("eb", "none", s, (0.8,) * 1000, data="omniglot")
            for s in range(seeds)
        ]
        return results + [
            result("eb", "meta", s, tuple(meta[s]), data="omniglot")
            for s in range(seeds)
        ]

    def wanted(results):
        runs = planned_runs(results)
        assert len({run.name for run in runs}) == len(runs)
        return (
            max(
                r.seed
                for r in runs
                if (r.learner, r.arm, Protocol.of(r))
                == ("eb", "meta", Protocol.of(main))
            )
            + 1
        )

    main = Run(data="omniglot")
    assert wanted([]) == 10 and wanted(finished(0, 0.005)) == 10
    assert wanted(finished(0.03, 0.03)) == wanted(finished(-0.03, 0.03)) == 15
    assert wanted(finished(0, 0.03, seeds=9)) == 10, "the first look is at ten"
    assert wanted(finished(0, 0.1, seeds=30)) == 30


def test_what_is_missing_is_named():
    run = Run("proto", "none", 0, "omniglot")
    accuracies = (0.5,) * run.test_tasks
    rows = missing_rows([result("proto", "none", 0, accuracies, data="omniglot")])
    assert rows[0]["learner"] == "proto" and rows[0]["finished"] == "1 of 10"
    assert any(
        "105x105" in row["protocol"] and row["finished"] == "0 of 2" for row in rows
    )


def test_protocols_do_not_mix():
    for settings in ({"size": 105}, {"mask_seed": 3}):
        with pytest.raises(
            ValueError,
            match=f"differ in {next(iter(settings))}: compare one protocol at a time",
        ):
            group_results([result(), result(arm="meta", **settings)])


def test_the_table_shows_what_the_results_hold():
    table = Comparison([result(arm="meta", accuracies=(0.6, 0.8, 1.0)), result()])
    none, meta = table.rows()
    assert none["arm"] == "none", "the baseline comes first"
    assert (
        none["accuracy %"].startswith("70.00 ±")
        and meta[">80%"] == "33.3"
        and meta["loss"] == "1.0000"
    )
    assert table.difference_rows()[0]["points"].startswith("+10.00 ± 0.00")
    assert table.difference_rows()[0]["verdict"] == "one seed only"
    assert table.interval_rows()[0]["p"] == table.interval_rows()[0]["crossed"] == "-"
    assert "+10.00" in repr(table) and "<table>" in table._repr_html_()
    assert len(table.plot().axes) == 2
    assert "claims" not in table.figures(), "the claims are about Omniglot, not glyphs"


@pytest.mark.parametrize("learner", ["proto", "eb", "original"])
def test_trained_with_more_ways_than_tested(learner, monkeypatch):
    ways = []
    sample = TaskSampler.sample
    monkeypatch.setattr(
        TaskSampler,
        "sample",
        lambda self, n: (ways.append(self.n_way), sample(self, n))[1],
    )
    run = Run(learner, "meta", train_way=8, **TINY)
    trained, _ = train_learner(run)
    assert ways == [8, 8] and trained.num_classes == 5
    wide, _ = train_learner(Run(learner, "meta", **TINY | {"n_way": 8}))
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            trained.state_dict().values(), wide.state_dict().values(), strict=True
        )
    )
    assert evaluate(trained, frozen_tasks(run)).accuracies.shape == (3,)


def test_rotations_are_for_training_only(monkeypatch):
    seen = []
    sampler = comparison.TaskSampler
    monkeypatch.setattr(
        comparison,
        "TaskSampler",
        lambda c, *a, **k: (seen.append(len(c)), sampler(c, *a, **k))[1],
    )
    run = Run(rotations=True, **TINY)
    train_learner(run)
    frozen_tasks(run)
    assert seen == [800, 100]


def test_validation_keeps_off_the_test_characters(omniglot_root):
    train, held_out = load_split("validation", 28)
    background, evaluation = load_split("omniglot", 28)
    assert sorted(train.names + held_out.names) == sorted(background.names)
    alphabets = [
        {name.split("/")[0] for name in part.names} for part in (train, held_out)
    ]
    assert (
        len(alphabets[0]) == 24
        and len(alphabets[1]) == 6
        and not alphabets[0] & alphabets[1]
    )
    assert not set(held_out.names) & set(evaluation.names)


def test_unscaled_masks_only_drop():
    def values(scaled):
        site = build_learner(
            Run("original", "meta", scaled=scaled, **TINY)
        ).network.sites[1]
        site.reset_mask((2, 64, 8, 8))
        return site.mask.unique()

    assert torch.equal(values(False), torch.tensor([0.0, 1.0]))
    assert torch.allclose(values(True), torch.tensor([0.0, 1 / 0.9]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"learner": "mnl"},
            "unknown learner 'mnl': choose one of proto, eb, original",
        ),
        ({"arm": "all"}, "unknown dropout arm"),
        ({"data": "mnist"}, "unknown data 'mnist'"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"statistics": "batch"}, "unknown statistics 'batch'"),
        ({"test_tasks": 1}, "test_tasks must be at least 2"),
        (
            {"learner": "maml", "train_way": 20},
            "cannot be trained 20-way and tested 5-way",
        ),
    ],
)
def test_unknown_names(settings, message):
    with pytest.raises(ValueError, match=message):
        Run(**settings)
