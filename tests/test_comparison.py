import ast
import importlib
import re
from dataclasses import asdict, fields
from graphlib import CycleError, TopologicalSorter

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from metadropout_nb import comparison
from metadropout_nb.comparison import (
    CLAIMS,
    FEW,
    LEARNER_NAMES,
    MAIN,
    VARIED,
    Comparison,
    Difference,
    Protocol,
    Rows,
    arm_label,
    between,
    compare_all,
    corrected_p_values,
    group_results,
    loss_change,
    means,
    missing_rows,
    over_learners,
    pair_rows,
    paired_differences,
    planned_runs,
    rank_learners,
    short_answer,
    split_protocols,
    spread_changes,
    verdict_rows,
)
from metadropout_nb.intervals import (
    MARGIN,
    VarianceComponents,
    equivalence,
    simulate_matrices,
    standard_error,
)
from metadropout_nb.runs import Run, load_results
from metadropout_nb.training import Evaluation

FIRST_STUDY = ROOT / "results" / "first_study"


def result(
    learner="original", arm="none", seed=0, accuracies=(0.5, 0.7, 0.9), **settings
):
    run = Run(learner, arm, seed, test_tasks=len(accuracies), **settings)
    return {
        "run": asdict(run),
        "accuracies": list(accuracies),
        "losses": [1.0] * len(accuracies),
    }


def test_no_results():
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
        Run(train_classes=30),
        Run(place="after_pool"),
        Run(bfloat16=True),
        Run(mask_seed=1),
        Run(mask_seed=1, seed=1),
    ]
    protocols = {Protocol.of(run) for run in [Run(), *others]}
    assert (
        len(protocols)
        == len({p.name for p in protocols})
        == len({p.slug for p in protocols})
        == 10
    )
    assert Protocol.of(Run(mask_seed=1)) == Protocol.of(Run(mask_seed=2))
    assert "only the masks differ (seed 0)" in Protocol.of(Run(mask_seed=3)).name


def test_every_setting_is_either_varied_or_part_of_the_protocol():
    settings = dict(Protocol.of(Run()).settings)
    assert settings.keys() | set(VARIED) == {f.name for f in fields(Run)}


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


@pytest.fixture(scope="module")
def stored():
    return load_results(FIRST_STUDY)


@pytest.fixture(scope="module")
def main(stored):
    return compare_all(stored)[MAIN]


def test_a_planted_effect_is_found_in_real_results(main):
    "An arm's own results, moved until the mean difference is -3 or +3 points."
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
    assert tried >= 2


def test_stored_results_are_what_their_names_say(stored):
    names = {path.stem for path in FIRST_STUDY.glob("*.json")}
    assert names == {Run(**one["run"]).name for one in stored}


def test_the_two_studies_share_no_seed(stored):
    "The protocol of the second begins at 100, and its results lie one folder up."
    assert max(one["run"]["seed"] for one in stored) < 100
    for path in FIRST_STUDY.parent.glob("*.json"):
        assert int(re.search(r"-seed(\d+)$", path.stem)[1]) >= 100, path.name


def test_the_first_study_says_what_it_found(stored, main):
    "The tables of its README, computed."
    text = (FIRST_STUDY / "README.md").read_text()
    assert f"{len(stored)} runs on Omniglot" in text
    for learner, claim in CLAIMS.items():
        d = main.of_arm()[learner]
        cells = [LEARNER_NAMES[learner], len(d.seeds)]
        cells += [f"{100 * d.mean:+.2f} ({d.interval})", d.verdict]
        row = " | ".join(map(str, [*cells, f"{100 * claim.gain:+.2f}"]))
        assert f"| {row} |" in text
    made = [(r["versions"]["metadropout_nb"], r["versions"]["torch"]) for r in stored]
    for ours, torch in set(made):
        row = f"| metadropout_nb {ours} | {torch} | {made.count((ours, torch))} |"
        assert row in text


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


def few(shared, noise=0.001):
    "Runs on 30 characters: dropout gains three points; a shared mask, so much more."
    planted = {
        "none": 0.7,
        "standard": 0.73,
        "separate": 0.73,
        "meta": 0.73 + shared,
    }
    found = [
        sample(learner, arm, seed, mean + noise * (seed % 3 - 1) * (arm == "meta"))
        for learner in ("proto", "eb")
        for seed in range(6)
        for arm, mean in planted.items()
    ]
    for one in found:
        one["run"]["train_classes"] = 30
        one["losses"] = [0.6 if one["run"]["arm"] == "standard" else 1.0] * 1000
    return found


@pytest.mark.parametrize(
    "shared, noise, said",
    [
        (0.03, 0.001, "helps"),
        (-0.03, 0.001, "hurts"),
        (0.0, 0.001, "makes less than a point of difference"),
        (-0.008, 0.01, "adds less than a point, and may cost more than one"),
        (0.008, 0.01, "costs less than a point, and may add more than one"),
        (0.0, 0.05, "is undecided"),
    ],
)
def test_the_short_answer_says_what_the_intervals_say(shared, noise, said):
    told = short_answer(few(shared, noise))
    assert "30 training characters ordinary dropout helps, and one shared" in told
    assert "| ordinary dropout, against none | +3.0 (" in told
    assert f"The sharing itself {said}.**" in told and "| seeds | 6 |" in told
    assert f"| one mask for both sets, against one each | {100 * shared:+.1f} (" in told


def test_the_short_answer_of_other_runs_is_that_there_is_none():
    assert "Not run yet" in short_answer([sample("eb", "meta", 0, 0.8)])


def test_differences_and_losses_of_two_arms():
    comparison = compare_all(few(0.01))[FEW]
    found = between(comparison, "meta", "separate")
    assert list(found) == ["proto", "eb"]
    assert all(d.mean == pytest.approx(0.01, abs=1e-3) for d in found.values())
    assert loss_change(comparison, "standard", "none") == pytest.approx(-0.4)
    assert between(comparison, "support", "none") == {}


def test_a_verdict_that_the_correction_does_not_keep_says_so():
    noise = [-0.01, 0.0, 0.01] * 2
    results = [
        sample("eb", arm, seed, 0.7 + mean + n * (arm != "none"))
        for seed, n in enumerate(noise)
        for arm, mean in (("none", 0), ("standard", 0), ("meta", 0.0105))
    ]
    comparison = compare_all(results)[MAIN]
    alone, _ = pair_rows(comparison, [("meta", "none")])
    among, *_ = pair_rows(comparison, [("meta", "none"), ("standard", "none")])
    assert alone["verdict"] == "helps" and among["verdict"] == "helps, but not kept"
    assert float(among["corrected p"]) == pytest.approx(2 * float(alone["corrected p"]))


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


def test_the_table_of_verdicts_is_of_the_main_protocol():
    results = [
        sample("original", arm, seed, mean)
        for seed in range(5)
        for arm, mean in (("none", 0.8), ("meta", 0.9))
    ]
    results += [sample("eb", arm, 0, 0.8) for arm in ("none", "meta")]
    results += [sample("maml", "none", seed, 0.8) for seed in range(3)] + [
        sample("maml", "meta", 0, 0.8, size=105)
    ]
    comparison = compare_all(results)[MAIN]
    difference = comparison.of_arm()["original"]
    _, row = verdict_rows(results)
    assert list(row.values()) == [
        "Original Meta Network",
        "+2.16",
        f"{100 * difference.mean:+.2f} ({difference.interval})",
        "helps",
    ]
    t, sd = stats.t.ppf(0.975, 4), difference.by_seed.std(ddof=1)
    assert difference.prediction_interval.half_width == pytest.approx(
        t * sd * (6 / 5) ** 0.5
    )
    assert [row["ours"] for row in comparison.claim_rows()] == [
        "+0.00",
        f"{100 * difference.mean:+.2f}",
        "not run yet",
    ]


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
    assert table._repr_markdown_().splitlines()[-1] == "| meta |  | 10 |"
    assert Rows([{"a|b": "c"}])._repr_markdown_().startswith("| a\\|b |")


def test_one_seed_does_not_stretch_the_figure_of_the_claims():
    one = Comparison([sample("maml", arm, 0, 0.8) for arm in ("none", "meta")])
    gain, spread = one.figures()["claims"].axes
    assert gain.get_xlim()[0] > -20 and spread.get_xlim()[0] > -50


def test_the_plan_grows_with_the_width_and_not_with_the_sign():
    few = {"data": "omniglot", "train_classes": 30}

    def finished(mean, sd, seeds=12, arm="meta", baseline="none"):
        "Results of two arms whose difference has this mean and this sd over seeds."
        noise = sd * np.array([[1.0], [-1.0]] * 14)
        better = 0.8 + mean + noise + np.zeros((28, 1000))
        return [
            result("eb", name, 100 + s, tuple(values), **few)
            for s in range(seeds)
            for name, values in ((baseline, [0.8] * 1000), (arm, better[s]))
        ]

    def wanted(results):
        runs = planned_runs(results)
        assert len({run.name for run in runs}) == len(runs)
        mine = [r for r in runs if (r.learner, r.arm, r.dose) == ("eb", "meta", 1)]
        settings = Protocol.of(Run(**few))
        seeds = [r.seed for r in mine if Protocol.of(r) == settings]
        assert seeds == list(range(100, 100 + len(seeds)))
        return len(seeds)

    assert wanted([]) == 12 and wanted(finished(0, 0.01)) == 12
    assert wanted(finished(0.04, 0.032)) == wanted(finished(-0.04, 0.032)) == 16
    assert wanted(finished(0, 0.032, seeds=11)) == 12, "the first look is at twelve"
    assert wanted(finished(0, 0.1, seeds=28)) == 28, "the most"
    shared = {"arm": "meta", "baseline": "standard"}
    assert wanted(finished(0, 0.024, **shared)) == 16, "1.5 points are wanted there"
    assert wanted(finished(0, 0.02, **shared)) == 12


def test_the_plan_begins_with_few_characters_and_uses_fresh_seeds():
    runs = planned_runs()
    assert min(run.seed for run in runs) == 100
    assert [run.train_classes for run in runs[:144]] == [30] * 144
    first = [(run.learner, run.arm) for run in runs[:4]]
    assert first == [("proto", arm) for arm in ("none", "standard", "separate", "meta")]


def test_what_is_missing_is_named():
    run = Run("proto", "none", 100, "omniglot", train_classes=30)
    accuracies = (0.5,) * run.test_tasks
    there = result("proto", "none", 100, accuracies, data="omniglot", train_classes=30)
    rows = missing_rows([there])
    assert rows[0]["learner"] == "proto" and rows[0]["finished"] == "1 of 12"
    large = [row for row in rows if "105x105" in row["protocol"]]
    assert large and all(row["finished"] == "0 of 3" for row in large)


def test_the_equivalence_test_asks_for_the_margin():
    rng = np.random.default_rng(0)
    noise = 0.004 * rng.normal(size=(12, 1)) + np.zeros((12, 50))
    inside, outside = noise - noise.mean() + 0.002, noise - noise.mean() + 0.02
    assert equivalence(inside, 9) < 0.05 < 0.5 < equivalence(outside, 9)
    at_the_edge = noise - noise.mean() + MARGIN
    assert equivalence(at_the_edge, 9) == pytest.approx(0.5)
    assert np.isnan(equivalence(inside[:1], 9)) and equivalence(0 * noise) == 0
    error, df = standard_error(inside)
    half = stats.t.ppf(0.95, min(df, 9)) * error
    edge = np.full_like(inside, MARGIN - half) + inside - inside.mean()
    assert equivalence(edge, 9) == pytest.approx(0.05, abs=1e-6)


def test_the_mean_over_learners_weighs_them_equally_over_common_seeds():
    def of(learner, seeds, value, arm="meta"):
        matrix = np.array([[value + seed, value - seed] for seed in seeds], float)
        return Difference(learner, arm, "none", seeds, matrix)

    mean = over_learners([of("eb", (1, 2, 3), 0.1), of("proto", (2, 3, 4), 0.3)])
    assert mean.seeds == (2, 3) and mean.mean == pytest.approx(0.2)
    assert mean.matrix[0] == pytest.approx([2.2, -1.8])
    for wrong in (
        [of("eb", (1,), 0.1), of("eb", (1,), 0.3)],
        [of("eb", (1,), 0.1), of("proto", (2,), 0.3)],
        [of("eb", (1,), 0.1), of("proto", (1,), 0.3, "standard")],
    ):
        with pytest.raises(ValueError, match="mean over|in common"):
            over_learners(wrong)


def test_means_are_over_the_learners_that_ran_all_arms():
    arms = {"eb": {"none": 0.5, "meta": 0.6, "separate": 0.7}, "maml": {"none": 0.5}}
    arms["maml"]["meta"] = 0.9
    one = Comparison(
        [
            sample(learner, arm, seed, accuracy)
            for learner, of in arms.items()
            for arm, accuracy in of.items()
            for seed in (0, 1)
        ]
    )
    gain, sharing = ("meta", "none"), ("meta", "separate")
    both = means(one, [gain, sharing])
    of_eb = between(one, *gain)["eb"]
    assert both[gain].mean == pytest.approx(of_eb.mean)
    assert means(one, [gain])[gain].mean > of_eb.mean  # MAML's, too
    with pytest.raises(ValueError, match="no learner was run with all arms"):
        means(one, [gain, ("standard", "none")])


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
    assert "+10.00" in repr(table) and "| --- |" in table._repr_markdown_()
    assert len(table.plot().axes) == 2
    assert "claims" not in table.figures(), "the claims are about Omniglot, not glyphs"


def test_names_that_moved_can_still_be_imported_from_here():
    moved = {
        "runs": "LEARNERS TEST_SEED DATA NAMED check_name load_split Run build_learner "
        "train_learner frozen_tasks execute write_json read_result sweep load_results",
        "intervals": "MARGIN LOOKS FIRST_LOOK LEAST_SEEDS Interval t_interval "
        "VarianceComponents simulate_matrices mean_squares variance_components "
        "bootstrap_interval standard_error crossed_interval verdict seeds_needed",
    }
    for name, names in moved.items():
        module = importlib.import_module(f"metadropout_nb.{name}")
        for each in names.split():
            assert getattr(comparison, each) is getattr(module, each)


def imported(source):
    "Modules of the package that a module imports, at its top or inside a function."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            package = "metadropout_nb" if node.level else ""
            whole = ".".join(filter(None, [package, node.module]))
            modules = [whole, *(f"{whole}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        else:
            continue
        parts = (module.split(".") for module in modules)
        found |= {p[1] for p in parts if p[0] == "metadropout_nb" and p[1:] and p[1]}
    return found


MODULES = {
    path.stem: path.read_text() for path in (ROOT / "metadropout_nb").glob("[!_]*.py")
}


def graph_of(texts: dict[str, str]) -> dict[str, set[str]]:
    return {name: imported(text) & texts.keys() for name, text in texts.items()}


def test_modules_import_one_another_in_one_direction():
    graph = graph_of(MODULES)
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == MODULES.keys() and graph["comparison"] >= {"runs", "intervals"}
    assert not graph["intervals"] & {"comparison", "runs", "training"}
    assert not graph["training"] & {"long_runs", "runs"}
    assert "comparison" not in graph["runs"]


@pytest.mark.parametrize(
    "line",
    [
        "from metadropout_nb.long_runs import fit",
        "from .long_runs import fit",
        "from . import long_runs",
        "import metadropout_nb.long_runs",
        "def later():\n    from metadropout_nb import long_runs",
    ],
)
def test_a_circle_is_found(line):
    assert imported(line) >= {"long_runs"}
    texts = MODULES | {"training": f"{MODULES['training']}\n{line}\n"}
    graph = graph_of(texts)
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("accuracies", [(0.5,), (0.5, 0.7, float("nan"))])
def test_accuracies_that_do_not_pair_up(accuracies):
    reports = {
        ("eb", arm): {0: Evaluation(np.array(values), np.array(values))}
        for arm, values in (("none", (0.5, 0.7, 0.9)), ("meta", accuracies))
    }
    with pytest.raises(ValueError, match="finite and of the same test tasks"):
        paired_differences(reports)
