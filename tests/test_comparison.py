import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from metadropout_nb import comparison
from metadropout_nb.comparison import (
    Comparison,
    Run,
    build_learner,
    execute,
    frozen_tasks,
    group_results,
    load_learner,
    load_results,
    load_split,
    paired_differences,
    save_learner,
    sweep,
)

TINY = {"size": 16, "tasks": 4, "test_tasks": 3, "meta_batch": 2, "test_query": 2}


def result(learner="original", arm="none", seed=0, accuracies=(0.5, 0.7, 0.9), **settings):
    run = Run(learner, arm, seed, test_tasks=len(accuracies), **settings)
    return {"run": comparison.asdict(run), "accuracies": list(accuracies), "losses": [1.0] * len(accuracies)}


def test_arms_of_a_seed_share_weights_and_tasks():
    def start(arm, seed):
        run = Run(arm=arm, seed=seed, **TINY)
        return torch.cat([p.flatten() for p in build_learner(run).parameters()]), frozen_tasks(run)

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
    assert first["accuracies"] == second["accuracies"] and first["losses"] == second["losses"]
    assert Run(**first["run"]) == Run(**TINY)
    assert first["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(first["training"]["losses"]) == 2


def test_different_runs_have_different_names():
    runs = [Run(), Run(seed=1), Run(arm="none"), Run(lr=0.01), Run(n_query=3), Run(meta_batch=4), Run(k_shot=5)]
    assert len({run.name for run in runs}) == len(runs)


def test_a_sweep_writes_one_file_a_run_and_does_not_repeat_it(tmp_path, monkeypatch):
    runs = [Run(arm=arm, **TINY) for arm in ("none", "meta")]
    first = sweep(runs[:1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{runs[0].name}.json"]
    done, real = [], execute
    monkeypatch.setattr(comparison, "execute", lambda run, progress: done.append(run) or real(run, progress))
    both = sweep(runs, tmp_path)
    assert done == runs[1:] and both[0] == first[0]
    assert both == [r for arm in ("none", "meta") for r in load_results(tmp_path) if r["run"]["arm"] == arm]


def test_a_killed_sweep_leaves_no_half_file_and_goes_on(tmp_path):
    code = f"""
from metadropout_nb import comparison
from metadropout_nb.comparison import Run, sweep
import os
real = comparison.json.dump
def dump(content, file):
    if content["run"]["arm"] == "meta":
        file.write('{{"run": '); file.flush(); os._exit(9)
    real(content, file)
comparison.json.dump = dump
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
    for damage in ("", "{", "{}", path.read_text()[:-40], json.dumps(good | {"accuracies": [0.5]})):
        path.write_text(damage)
        with pytest.raises(ValueError, match=f"{path.name} is not a result"):
            load_results(tmp_path)
        with pytest.warns(UserWarning, match="run again"):
            (again,) = sweep([run], tmp_path)
        assert again["accuracies"] == good["accuracies"]


def test_no_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results"):
        load_results(tmp_path)
    with pytest.raises(ValueError, match="nothing to compare"):
        group_results([])


def test_differences_pair_up_by_seed():
    results = [result(seed=s, accuracies=(0.5 + s / 10, 0.6, 0.7)) for s in (0, 1, 2)]
    results += [result(arm="meta", seed=s, accuracies=(0.6 + s / 10, 0.6, 0.7 + s / 100)) for s in (2, 1, 5)]
    (difference,) = paired_differences(group_results(results))
    expected = np.array([0.1 + 0.01, 0.1 + 0.02]) / 3
    assert difference.by_seed == pytest.approx(expected)
    low, high = stats.t.interval(0.95, 1, expected.mean(), stats.sem(expected))
    assert difference.mean == pytest.approx(expected.mean()) and difference.ci95 == pytest.approx((high - low) / 2)
    assert "over 2 seeds" in str(difference)


def test_one_seed_has_an_interval_over_tasks_and_says_so():
    (difference,) = paired_differences(group_results([result(), result(arm="meta", accuracies=(0.6, 0.7, 0.8))]))
    by_task = np.array([0.1, 0.0, -0.1])
    assert difference.ci95 == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(by_task))
    assert "3 tasks of one seed" in str(difference)


def test_protocols_do_not_mix():
    with pytest.raises(ValueError, match="differ in size"):
        group_results([result(), result(arm="meta", size=105)])


def test_the_table_shows_what_the_results_hold():
    table = Comparison([result(arm="meta", accuracies=(0.6, 0.8, 1.0)), result()])
    none, meta = table.rows()
    assert none["arm"] == "none", "the baseline comes first"
    assert none["accuracy %"].startswith("70.00 ±") and meta[">80%"] == "33.3" and meta["loss"] == "1.0000"
    assert table.difference_rows()[0]["points"].startswith("+10.00 ± 0.00")
    assert "+10.00" in repr(table) and "<table>" in table._repr_html_()
    assert len(table.plot().axes) == 2


def test_a_saved_learner_comes_back(tmp_path):
    run = Run(**TINY)
    learner = build_learner(run)
    save_learner(learner, run, tmp_path / "a")
    loaded, told = load_learner(tmp_path / "a")
    assert told == run and not loaded.training
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in learner.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["run.json", "weights.safetensors"]


def test_a_damaged_learner_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no learner"):
        load_learner(tmp_path)
    save_learner(build_learner(Run(**TINY)), Run(**TINY), tmp_path)
    weights = tmp_path / "weights.safetensors"
    whole = weights.read_bytes()
    for damage in (b"", whole[:-10], b"\x00" * 100):
        weights.write_bytes(damage)
        with pytest.raises(ValueError, match="sound learner"):
            load_learner(tmp_path)
    weights.write_bytes(whole)
    (tmp_path / "run.json").write_text(json.dumps(comparison.asdict(Run(**TINY)) | {"size": 32}))
    with pytest.raises(ValueError, match="sound learner"):
        load_learner(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learner": "mnl"}, "unknown learner 'mnl': choose one of proto, eb, original"),
        ({"arm": "all"}, "unknown dropout arm"),
        ({"data": "mnist"}, "unknown data 'mnist'"),
    ],
)
def test_unknown_names(settings, message):
    with pytest.raises(ValueError, match=message):
        Run(**settings)
