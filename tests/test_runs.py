import json
from dataclasses import asdict, replace

import pytest
import torch
from distributed import Client, LocalCluster
from filelock import FileLock
from joblib import parallel_config

from metadropout_nb import runs as module
from metadropout_nb.meta_dropout import ARMS
from metadropout_nb.runs import (
    PLACES,
    Run,
    build_learner,
    execute,
    frozen_tasks,
    load_results,
    load_split,
    read_result,
    sweep,
    train_learner,
    training_characters,
    write_json,
)
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.training import evaluate

TINY = {"size": 16, "tasks": 4, "test_tasks": 3, "meta_batch": 2, "test_query": 2}


def result(run, accuracies=(0.5, 0.7, 0.9)):
    "What a run might have left."
    losses = [1.0] * len(accuracies)
    return {"run": asdict(run), "accuracies": list(accuracies), "losses": losses}


def test_arms_of_a_seed_share_weights_and_tasks():
    def start(arm, seed):
        run = Run(arm=arm, seed=seed, **TINY)
        return torch.cat(
            [p.flatten() for p in build_learner(run).parameters()]
        ), frozen_tasks(run)

    (w0, t0), (w1, t1), (w2, t2) = start("none", 0), start("meta", 0), start("meta", 1)
    assert torch.equal(w0, w1) and not torch.equal(w0, w2)
    assert torch.equal(t0.query, t1.query) and torch.equal(t0.query, t2.query)


def test_arms_of_a_seed_train_on_the_same_tasks(monkeypatch):
    drawn, sample = [], TaskSampler.sample

    def noting(sampler, n_tasks=1):
        drawn.append(sample(sampler, n_tasks))
        return drawn[-1]

    monkeypatch.setattr(TaskSampler, "sample", noting)
    found = []
    for arm in ARMS:
        drawn.clear()
        train_learner(Run("proto", arm, 3, **TINY))
        found.append(torch.cat([batch.query for batch in drawn]))
    assert all(torch.equal(queries, found[0]) for queries in found)


def test_arms_of_a_seed_train_on_the_same_few_characters():
    def names(**settings):
        return training_characters(
            Run(**{"train_classes": 30} | settings, size=16)
        ).names

    known = names(arm="none", seed=3)
    assert len(set(known)) == 30
    assert all(names(arm=arm, seed=3) == known for arm in ARMS)
    assert all(names(learner=one, seed=3) == known for one in ("proto", "maml"))
    assert set(names(seed=4)) != set(known)
    assert names(seed=3, train_classes=100)[:30] == known
    assert set(known) <= set(names(train_classes=None))


def test_a_run_is_trained_on_its_few_characters(monkeypatch):
    seen = []
    sample = TaskSampler.sample
    monkeypatch.setattr(
        TaskSampler,
        "sample",
        lambda self, n: (seen.append(self.characters.names), sample(self, n))[1],
    )
    run = Run("proto", "none", train_classes=6, **TINY)
    execute(run)
    few, test = training_characters(run).names, load_split("glyphs", 16)[1].names
    assert all(names in (few, test) for names in seen)
    assert seen.count(few) == 3, "two updates, and the test on familiar characters"


@pytest.mark.parametrize("settings", [{}, {"rotations": True}])
def test_more_characters_than_there_are(settings):
    there = len(training_characters(Run(**settings, **TINY)))
    most = Run("proto", train_classes=there, **settings, **TINY)
    assert len(set(training_characters(most).names)) == there
    with pytest.raises(ValueError, match=f"train_classes={there + 1}, .* {there} char"):
        train_learner(replace(most, train_classes=there + 1))


def test_each_place_of_the_masks_is_another_training():
    def trained(**settings):
        learner, history = train_learner(Run("eb", **settings, **TINY))
        return history.losses

    losses = [trained(place=place) for place in PLACES]
    assert len({tuple(of_place) for of_place in losses}) == len(PLACES) == 3
    assert losses[0] == trained()
    without = [trained(arm="none", place=place) for place in PLACES]
    assert without[0] == without[1] == without[2], "no masks, and so no place"


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
        Run(train_classes=30),
        Run(place="embedding"),
        Run(bfloat16=True),
    ]
    assert len({run.name for run in runs}) == len(runs)


def test_a_sweep_writes_one_file_per_run_and_does_not_repeat_it(tmp_path, monkeypatch):
    runs = [Run(arm=arm, **TINY) for arm in ("none", "meta")]
    first = sweep(runs[:1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{runs[0].name}.json"]
    done, real = [], execute
    monkeypatch.setattr(
        module, "execute", lambda run, *rest: done.append(run) or real(run, *rest)
    )
    both = sweep(runs, tmp_path)
    assert done == runs[1:] and both[0] == first[0]
    assert both == [
        r
        for arm in ("none", "meta")
        for r in load_results(tmp_path)
        if r["run"]["arm"] == arm
    ]


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
    def execute(run, progress, checkpoint, device):
        if run.seed == 1:
            raise error("the loss of training task 5 is not finite")
        return result(run)

    monkeypatch.setattr(module, "execute", execute)
    runs = [Run(arm="none", seed=seed, **TINY) for seed in range(4)]
    told = "1 of 4 runs failed, all others are finished:\n"
    told += f"{runs[1].name}: {error.__name__}: the loss"
    with pytest.raises(ValueError, match=told):
        sweep(runs, tmp_path)
    assert [path.stem for path in sorted(tmp_path.glob("*.json"))] == [
        run.name for run in runs if run.seed != 1
    ]


def test_no_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"k_shot": 19},
        {"n_way": 120},
        {"train_way": 2, "train_classes": 3},
        {"test_tasks": 10**9},
    ],
)
def test_what_cannot_be_tested_is_found_out_before_the_training(settings, monkeypatch):
    monkeypatch.setattr(
        module, "train_learner", lambda *_: pytest.fail("it was trained")
    )
    with pytest.raises(ValueError, match="drawings|characters|classes|memory"):
        execute(Run("proto", **TINY | settings))


@pytest.mark.parametrize(
    "accuracies",
    [
        *([50, 60, 70], [True, False, True]),
        *([0.5, value, 0.5] for value in (-0.1, float("nan"), None, "1", [0.5])),
    ],
)
def test_accuracies_are_fractions(tmp_path, accuracies):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result(Run(test_tasks=3), accuracies)))
    with pytest.raises(
        ValueError, match=r"3 test tasks, but 3 accuracies, [0-2] of them sound"
    ):
        read_result(path)


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

    def execute(run, progress, checkpoint, device):
        executed.append(run)
        if run == second:  # meanwhile the other sweep finishes the first run, or dies
            if not other_dies:
                write_json(tmp_path / f"{first.name}.json", result(first))
                (tmp_path / f"{first.name}.lock").unlink()
            other.release()
        return result(run)

    monkeypatch.setattr(module, "execute", execute)
    sweep([first, second], tmp_path)
    assert executed == ([second, first] if other_dies else [second])
    assert not list(tmp_path.glob("*.lock"))


def test_equal_numbers_are_one_run():
    assert Run(dose=2).name == Run(dose=2.0).name and Run(lr=1).name == Run(lr=1.0).name


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
    sampler = module.TaskSampler
    monkeypatch.setattr(
        module,
        "TaskSampler",
        lambda c, *a, **k: (seen.append(len(c)), sampler(c, *a, **k))[1],
    )
    run = Run(rotations=True, **TINY)
    train_learner(run)
    frozen_tasks(run)
    assert seen == [800, 100]


def test_another_kind_of_drawing_is_for_the_test_alone(omniglot_root):
    run = Run("proto", "none", data="omniglot", test_data="glyphs", test_tasks=3)
    elsewhere = Run("proto", "none", data="omniglot", test_tasks=3)
    drawn, own = frozen_tasks(run), frozen_tasks(elsewhere)
    assert torch.equal(drawn.query_x, frozen_tasks(Run(test_tasks=3)).query_x)
    assert not torch.equal(drawn.query_x, own.query_x)
    names = [training_characters(r).names for r in (run, elsewhere)]
    assert names[0] == names[1] and run.name != elsewhere.name
    with pytest.raises(ValueError, match="unknown test_data 'validation'"):
        replace(run, test_data="validation")  # whose characters it may train on
    with pytest.raises(ValueError, match="pictures of your own"):
        replace(run, data="own-0123456789ab")
    assert Run(test_data="glyphs") == Run(), "one run, one name"


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
        ({"place": "head"}, "unknown place 'head': choose one of before_pool"),
        ({"place": "embedding", "dose": 2}, "drops all of the embedding"),
        ({"train_classes": 0}, "train_classes must be at least 1"),
        ({"bfloat16": 1}, "bfloat16 must be bool, got 1"),
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
