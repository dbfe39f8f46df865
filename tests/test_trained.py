import hashlib
import json
import shutil
from dataclasses import replace
from importlib.resources import files

import numpy as np
import people
import pytest
import torch
from conftest import ROOT, broken_off, going_on
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from metadropout_nb import trained
from metadropout_nb.embedding_network import EmbeddingNetwork
from metadropout_nb.meta_dropout import MetaDropout
from metadropout_nb.omniglot import Characters, glyphs, load_omniglot
from metadropout_nb.runs import LEARNERS, Run, build_learner, frozen_tasks, with_ways
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.trained import (
    lake_error,
    load_lake_runs,
    load_learner,
    load_papers_split,
    pretrained,
    save_learner,
    validation_runs,
)
from metadropout_nb.training import PrototypicalNetwork, evaluate, task_losses

TINY = Run(size=16, tasks=4, test_tasks=3, meta_batch=2, test_query=2)


@pytest.fixture
def folder(tmp_path):
    return save_learner(build_learner(TINY), TINY, tmp_path / "learner")


def change(folder, **entries):
    about = folder / "learner.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | entries))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_saved_learner_comes_back(name, tmp_path):
    run = Run(name, size=16, test_tasks=2)
    learner = build_learner(run)
    loaded, told = load_learner(save_learner(learner, run, tmp_path / "a"))
    assert told == run and not loaded.training
    assert all(
        torch.equal(v, loaded.state_dict()[k]) for k, v in learner.state_dict().items()
    )
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md",
        "learner.json",
        "weights.safetensors",
    ]


def own_network(filters=3):
    tied = nn.Linear(4 * filters, 4 * filters)
    layers = [nn.Conv2d(1, filters, 3), nn.BatchNorm2d(filters), MetaDropout(0.2)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(2), nn.Flatten(), tied, tied)


def own_learner(name, filters=3):
    return LEARNERS[name](network=own_network(filters), embedding_dim=4 * filters)


@pytest.fixture
def own_folder(tmp_path):
    run = Run("proto", size=16, test_tasks=3, test_query=2)
    return save_learner(own_learner("proto"), run, tmp_path / "own")


@pytest.mark.parametrize("name", ["proto", "eb", "original"])
def test_a_network_of_ones_own_is_filled(name, tmp_path):
    run, learner = Run(name, size=16, test_tasks=3, test_query=2), own_learner(name)
    learner.network[1].running_mean += 1.0
    save_learner(learner, run, tmp_path)
    untrained = own_learner(name)
    loaded, told = load_learner(tmp_path, untrained)
    assert loaded is untrained and not loaded.training and told == run
    tasks = frozen_tasks(run)
    assert (evaluate(loaded, tasks).losses == evaluate(learner, tasks).losses).all()
    card = (tmp_path / "README.md").read_text()
    assert "`Sequential` as its network" in card and "train_learner" not in card


def test_a_network_of_ones_own_has_to_be_brought(own_folder):
    with pytest.raises(ValueError, match="'Sequential', is its maker's own"):
        load_learner(own_folder)


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (
            lambda: own_learner("proto", filters=4),
            r"of this build: network.0.weight has the shape \[3, 1, 3, 3\], expected",
        ),
        (lambda: own_learner("eb"), "of this build: missing weights: meta_learner.U"),
        (lambda: build_learner(TINY), "of this build: missing weights: meta_learner.U"),
    ],
)
def test_what_does_not_fit_is_not_filled(own_folder, learner, message):
    untrained = learner()
    before = {name: t.clone() for name, t in untrained.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_learner(own_folder, untrained)
    after = untrained.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_settings_that_no_run_knows(tmp_path):
    colour = EmbeddingNetwork(32, image_size=16, in_channels=3)
    learner = LEARNERS["proto"](network=colour, embedding_dim=32)
    run = Run("proto", size=16)
    save_learner(learner, run, tmp_path)
    with pytest.raises(ValueError, match="has the shape"):
        load_learner(tmp_path)
    other = EmbeddingNetwork(32, image_size=16, in_channels=3)
    loaded, _ = load_learner(
        tmp_path, LEARNERS["proto"](network=other, embedding_dim=32)
    )
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.embed(images), learner.eval().embed(images))


def test_no_learner(tmp_path):
    with pytest.raises(FileNotFoundError, match="no learner"):
        load_learner(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda whole: b"", lambda whole: whole[:-10], lambda whole: b"\x00" * 100],
)
def test_damaged_weights_are_refused(folder, damage):
    weights = folder / "weights.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ValueError, match="hashes differ"):
        load_learner(folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format": 2}, "format is 2, but this version"),
        ({"run": "original"}, "does not say how"),
        ({"network": None}, "network, None, is its maker's own"),
        ({"run": {"layers": 4}}, "unknown settings in learner.json: layers"),
        ({"run": {"size": "16"}}, "size must be int"),
        ({"run": {"size": True}}, "size must be int"),
        ({"run": {"learner": "os.system"}}, "unknown learner"),
        (
            {"run": {"size": 32}},
            r"network.linear.weight has the shape \[64, 64\], expected \[64, 256\]",
        ),
        ({"run": {"size": 16 * 10**7}}, "expected"),
        ({"run": {"learner": "proto", "size": 16}}, "unknown weights: meta_learner"),
        (
            {"run": {"learner": "maml", "size": 16, "n_way": 10**12}},
            "missing weights: head",
        ),
    ],
)
def test_what_the_json_must_not_say(folder, entries, message):
    change(folder, **entries)
    with pytest.raises(ValueError, match=message):
        load_learner(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"run": ' * 100_000, '"\\ud800"', "\x00", "1e999"]
)
def test_hostile_json(folder, text):
    (folder / "learner.json").write_text(text)
    with pytest.raises(ValueError, match="sound learner"):
        load_learner(folder)


def test_weights_that_miss_one(folder):
    weights = load_file(folder / "weights.safetensors")
    del weights["network.linear.bias"]
    save_file(weights, folder / "weights.safetensors")
    change(
        folder,
        sha256=hashlib.sha256(
            (folder / "weights.safetensors").read_bytes()
        ).hexdigest(),
    )
    with pytest.raises(ValueError, match="missing weights: network.linear.bias"):
        load_learner(folder)


@pytest.mark.parametrize(
    ("name", "least"), [("proto", 0.9), ("eb", 0.8), ("original", 0.7), ("maml", 0.7)]
)
def test_shipped_learners_know_drawings_that_they_never_saw(name, least):
    learner, run = pretrained(name)
    tasks = TaskSampler(glyphs(50), n_query=5, seed=1).sample(20)
    trained, untrained = evaluate(learner, tasks), evaluate(build_learner(run), tasks)
    assert trained.accuracy > max(least, untrained.accuracy + 0.1)


@pytest.mark.parametrize("name", LEARNERS)
def test_shipped_learners_are_what_their_cards_say(name, omniglot_root):
    learner, run = pretrained(name)
    folder = files("metadropout_nb") / "weights" / name
    said = json.loads((folder / "learner.json").read_text())
    report = evaluate(learner, frozen_tasks(run, 50))
    assert abs(report.accuracy - said["test"]["accuracy"]) < 3 * report.sd / 50**0.5
    assert f"{said['test']['accuracy']:.2%}" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "recipe", ["proto-deep", "eb-base", "original-fast", "maml-often"]
)
def test_what_ships_is_what_was_tested(recipe, omniglot_root):
    "At half precision a query that lay between two classes may change sides."
    name = f"best-{recipe.partition('-')[0]}"
    learner, run = pretrained(name)
    stored = json.loads((ROOT / f"results/people/tests/{recipe}.json").read_text())
    right = 1 - np.array(stored["errors"]["frozen 5-way"])
    found = evaluate(learner, frozen_tasks(run, 6)).accuracies
    assert abs(found - right[:6]).sum() < 1.5 / 75
    folder = files("metadropout_nb") / "weights" / name
    assert f"{right.mean():.2%}" in (folder / "README.md").read_text()
    assert (folder / "weights.safetensors").stat().st_size < 2_000_000


def test_the_best_learner_that_ships_is_what_met_the_people_s_test(omniglot_root):
    stored = json.loads((ROOT / "results/people/lake/proto-deep.json").read_text())
    error, _ = lake_error(pretrained()[0])
    assert error == pytest.approx(np.mean(stored["errors"]))


def test_the_runs_are_found_beside_the_other_characters():
    from metadropout_nb.omniglot import load_lake_runs

    assert load_lake_runs is trained.load_lake_runs
    with pytest.raises(ImportError):
        from metadropout_nb.omniglot import load_lakes  # noqa: F401


def test_no_such_pretrained_learner():
    with pytest.raises(
        ValueError,
        match="one of best-eb, best-maml, best-original, best-proto, eb, maml",
    ):
        pretrained("resnet")


@pytest.mark.parametrize("name", ["proto", "best-proto"])
def test_loading_leaves_the_generator_where_it_was(name):
    before = torch.manual_seed(123).get_state()
    pretrained(name)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def drawn():
    return glyphs(20, n_drawings=2, size=105).images


@pytest.fixture(scope="module")
def sound(drawn, tmp_path_factory):
    "Twenty runs of Lake's form: item i is the other drawing of class 21 - i."
    root = tmp_path_factory.mktemp("lake")
    run = root / "run01"
    for part, name, hand in (("training", "class", 0), ("test", "item", 1)):
        (run / part).mkdir(parents=True)
        for n in range(1, 21):
            image = drawn[n - 1 if hand == 0 else 20 - n, hand]
            path = run / part / f"{name}{n:02}.png"
            Image.fromarray(255 - image.numpy()).save(path)
    for k in range(1, 21):
        if k > 1:
            shutil.copytree(run, root / f"run{k:02}")
        pairs = [
            f"run{k:02}/test/item{n:02}.png run{k:02}/training/class{21 - n:02}.png\n"
            for n in range(1, 21)
        ]
        (root / f"run{k:02}" / "class_labels.txt").write_text("".join(pairs))
    return root


@pytest.fixture
def lake(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "lake")


def test_lakes_runs_from_folders_and_from_the_zip(sound, drawn, tmp_path):
    runs = load_lake_runs(sound)
    assert runs.support.shape == runs.query.shape == (20, 20, 105, 105)
    assert (runs.support == drawn[:, 0]).all()
    assert (runs.query_y == torch.arange(19, -1, -1)).all()
    assert (runs.query == drawn[runs.query_y[0], 1]).all()
    shutil.make_archive(tmp_path / "all_runs", "zip", sound)
    small = load_lake_runs(tmp_path, size=28)
    assert small.support_x.shape == (20, 20, 1, 28, 28)
    assert (small.query_y == runs.query_y).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "training/class07.png").unlink(), "run03/training/class07"),
        (
            lambda run: (run / "test/item02.png").write_bytes(b"PNG"),
            "run03/test/item02",
        ),
        (
            lambda run: Image.new("L", (99, 99)).save(run / "test/item20.png"),
            "run03/test/item20.png: .*expected .105, 105.",
        ),
        (lambda run: (run / "class_labels.txt").unlink(), "class_labels.txt"),
        (
            lambda run: (run / "class_labels.txt").write_text(
                (run / "class_labels.txt").read_text().replace("class07", "class08")
            ),
            "run03/class_labels.txt does not pair",
        ),
        (
            lambda run: (run / "class_labels.txt").write_text("../../a.png ../b.png\n"),
            "run03/class_labels.txt does not pair",
        ),
    ],
)
def test_damaged_runs_are_refused_by_name(lake, damage, message):
    damage(lake / "run03")
    with pytest.raises(ValueError, match=f"damaged or incomplete: .*{message}"):
        load_lake_runs(lake)


def test_runs_that_are_not_there(tmp_path, cache, monkeypatch):
    with pytest.raises(FileNotFoundError, match="neither all_runs.zip nor run01/"):
        load_lake_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither all_runs.zip"):
        load_lake_runs(download=False)
    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError, match="home"):
        patch.setattr("metadropout_nb.omniglot._cache", lambda: None)
        load_lake_runs()
    (tmp_path / "all_runs.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="all_runs.zip is damaged"):
        load_lake_runs(tmp_path)

    def no_network(url, *_, **__):
        raise OSError("unreachable")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", no_network)
    with pytest.raises(ConnectionError, match="all_runs.zip cannot be had"):
        load_lake_runs()
    assert list(cache.iterdir()) == []


def test_lakes_hands_are_the_first_eight(omniglot_root):
    "What `validation_runs` imitates: one alphabet, two hands, both among the first."
    characters = load_omniglot(omniglot_root, background=False)
    found = {
        image.numpy().tobytes(): (i, hand)
        for i, drawings in enumerate(characters.images)
        for hand, image in enumerate(drawings)
    }
    runs = load_lake_runs(omniglot_root)
    for support, query, y in zip(runs.support, runs.query, runs.query_y, strict=True):
        a, b = ([found[x.numpy().tobytes()] for x in part] for part in (support, query))
        assert [a[label][0] for label in y] == [i for i, _ in b]
        assert len({characters.names[i].split("/")[0] for i, _ in a}) == 1
        hands = {h for _, h in a}, {h for _, h in b}
        assert [len(h) for h in hands] == [1, 1] and max(hands[0] | hands[1]) < 8


@pytest.fixture
def alphabets(monkeypatch):
    "Drawings whose pixels say class and hand; the last alphabet is too small."
    sizes = {"A": 24, "B": 20, "C": 19}
    names = [f"{a}/{i}" for a, size in sizes.items() for i in range(size)]
    images = torch.zeros(len(names), 20, 8, 8, dtype=torch.uint8)
    images[..., 0, 0] = torch.arange(len(names))[:, None]
    images[..., 0, 1] = torch.arange(20)
    characters = Characters(images, tuple(names))
    monkeypatch.setattr(trained, "load_split", lambda *_: (None, characters))
    return characters


def test_validation_runs_have_one_alphabet_and_two_hands(alphabets):
    runs = validation_runs(n_runs=6)
    assert runs.query.shape == (6, 20, 8, 8)
    for r in range(6):
        assert {alphabets.names[c][0] for c in runs.classes[r]} == {"AB"[r % 2]}
        assert (runs.support[r, :, 0, 0] == runs.classes[r]).all()
        assert (runs.query[r, :, 0, 0] == runs.classes[r][runs.query_y[r]]).all()
        assert sorted(runs.query_y[r].tolist()) == list(range(20))
        hands = [set(part[r, :, 0, 1].tolist()) for part in (runs.support, runs.query)]
        assert [len(hand) for hand in hands] == [1, 1] and hands[0] != hands[1]
        assert max(hands[0] | hands[1]) < 8
    assert torch.equal(validation_runs(n_runs=2).query, runs.query[:2])


def test_error_with_its_interval():
    tasks = TaskSampler(glyphs(30, size=16), n_way=20, n_query=1).sample(4)
    learner = PrototypicalNetwork(5, 256, nn.Flatten())
    error, interval = lake_error(learner, tasks)
    errors = 1 - evaluate(with_ways(learner, 20), tasks).accuracies
    assert error == errors.mean() and interval.low < error < interval.high
    assert learner.num_classes == 5
    known = replace(tasks, query=tasks.support, query_y=tasks.support_y)
    assert lake_error(learner, known) == (0, (0, 0))
    with pytest.raises(ValueError, match="trained 5-way, it cannot be tested 20-way"):
        lake_error(build_learner(Run("maml", size=16)), tasks)


def test_the_papers_split(omniglot_root):
    learned, new = load_papers_split()
    assert (len(learned), len(new)) == (4 * 1200, 4 * 423)
    assert not {*learned.names} & {*new.names}
    assert (learned.names[1199], new.names[0]) == (
        "Gurmukhi/character41",
        "Gurmukhi/character42",
    )


@pytest.fixture(scope="module")
def small():
    "Six alphabets of five glyphs."
    drawings = glyphs(30, size=28)
    names = tuple(f"{'ABCDEF'[i // 5]}/{i}" for i in range(30))
    return Characters(drawings.images, names)


def test_jitter_keeps_shapes_and_labels(small):
    settings = {"n_way": 5, "n_query": 2, "seed": 3}
    plain = people.PeopleSampler(small, 0.0, False, **settings).sample(4)
    sampler = people.PeopleSampler(small, 0.0, True, **settings)
    moved = sampler.sample(4)
    for name in ("support", "query"):
        before, after = getattr(plain, name), getattr(moved, name)
        assert before.shape == after.shape and after.dtype == torch.uint8
        ratio = after.float().mean() / before.float().mean()
        assert not torch.equal(before, after) and 0.7 < ratio < 1.3
    assert torch.equal(plain.query_y, moved.query_y)
    assert torch.equal(plain.classes, moved.classes)
    torch.rand(1)  # what others draw does not matter, nor how tasks are grouped
    assert torch.equal(sampler.tasks([2]).query[0], moved.query[2])


def test_tasks_of_few_alphabets(small):
    sampler = people.PeopleSampler(small, 1.0, False, n_way=10, n_query=1)
    for classes in sampler.sample(5).classes:
        assert len(set(classes.tolist())) == 10
        assert len({small.names[c][0] for c in classes}) == 2


TRIAL = people.Trial("test", size=28, widths=(4, 4, 4, 8), ways=5, tasks=4)


@pytest.mark.parametrize(
    "trial",
    [
        replace(TRIAL, arm="meta", depth=6),
        replace(TRIAL, learner="maml", norm="step", inner_steps=2, multi_step=3),
    ],
    ids=["proto", "maml"],
)
def test_a_training_that_was_interrupted_ends_the_same(
    trial, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(people, "load_split", lambda *_: (small, small))
    whole, history = people.train(trial)
    with broken_off():
        people.train(trial, tmp_path / "checkpoint", every=2)
    with going_on():
        again, other = people.train(trial, tmp_path / "checkpoint", every=2)
    assert history.losses == other.losses
    state = again.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in whole.state_dict().items())
    assert not any("average" in name for name in state)


def test_matching_at_no_shift_is_a_prototypical_network(small):
    torch.manual_seed(0)
    task = TaskSampler(small, n_query=2).sample()[0]
    support, query = torch.randn(5, 4 * 9), torch.randn(10, 4 * 9)
    settings = {"embedding_dim": 36, "network": nn.Flatten()}
    plain = PrototypicalNetwork(**settings).classify(support, task.support_y, query)
    still, moved = (
        people.MatchingNetwork(4, shift, **settings).classify(
            support, task.support_y, query
        )
        for shift in (0, 1)
    )
    torch.testing.assert_close(9 * still, plain)
    assert (moved >= still).all() and (moved > still).any()
    shifted = support.unflatten(-1, (4, 3, 3)).roll(1, -1).flatten(-3)
    near = people.MatchingNetwork(4, 1, **settings)
    found = near.classify(support, torch.arange(5), shifted)
    torch.testing.assert_close(found.diag(), torch.zeros(5), atol=1e-4, rtol=0)


def test_the_loss_after_every_step():
    "Cross-entropy of what `StepMAML` returns is the weighted sum of the steps' losses."
    trial = replace(TRIAL, learner="maml", norm="group", widths=(8,) * 4)
    task = TaskSampler(glyphs(8), n_query=2).sample()
    losses = {}
    for steps, fade in ((1, 0), (2, 0), (2, 10**9)):
        settings = {"inner_steps": steps, "multi_step": fade, "inner_lr": 0.1}
        learner = people.learner_of(replace(trial, **settings))
        logits = learner(task.support_x, task.support_y, task.query_x)
        losses[steps, fade] = float(task_losses(logits, task.query_y).detach())
    both = (losses[1, 0] + losses[2, 0]) / 2
    assert losses[1, 0] != losses[2, 0]
    assert losses[2, 10**9] == pytest.approx(both, abs=1e-5)


@pytest.mark.parametrize("norm", ["step", "group"])
def test_tasks_of_maml_at_once_are_those_one_by_one(norm):
    sizes = {"widths": (8,) * 4, "inner_steps": 2}
    trial = replace(TRIAL, learner="maml", norm=norm, **sizes)
    learner = people.learner_of(trial).double()
    tasks = TaskSampler(glyphs(8), n_query=2).sample(3)
    inputs = tasks.support_x.double(), tasks.support_y, tasks.query_x.double()
    together = learner(*inputs)
    apart = torch.stack([learner(*task) for task in zip(*inputs, strict=True)])
    torch.testing.assert_close(together, apart)
    learner.eval()
    for norm in learner.step_norms:  # three passes of each step were gathered
        assert (norm.mean != 0).any(1).all()
        norm.own = True
    torch.testing.assert_close(learner(*inputs), together)


def test_a_second_look_keeps_what_comes_out():
    learner = people.learner_of(TRIAL).eval()
    looking = people.with_second_look(learner, TRIAL.size)
    task = TaskSampler(glyphs(8), n_query=2).sample()[0]
    logits = looking(task.support_x, task.support_y, task.query_x)
    assert logits.shape == (10, 5)
    blank = torch.zeros(2, 1, 28, 28)  # every look at nothing is alike
    torch.testing.assert_close(looking.embed(blank), learner.embed(blank))


def test_the_best_trial_is_the_one_with_the_smallest_validation_error(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(people, "OUT", tmp_path)
    for name, once, nine in (("a", 0.3, 0.2), ("b", 0.25, 0.26)):
        trial = replace(TRIAL, name=name)
        looks = {"once": {"runs": [once]}, "nine looks": {"runs": [nine]}}
        about = {"trial": people.asdict(trial), "errors": looks, "minutes": 1}
        people.path_of(trial).write_text(json.dumps(about))
    assert people.best_of("proto") == (replace(TRIAL, name="a"), "nine looks")
    with pytest.raises(FileNotFoundError, match="no finished trial of eb"):
        people.best_of("eb")


def test_lakes_runs_are_looked_at_once(tmp_path, monkeypatch, sound):
    monkeypatch.setattr(people, "OUT", tmp_path)
    monkeypatch.setenv("METADROPOUT_DATA", str(sound))
    learner = PrototypicalNetwork(5, 28**2, nn.Flatten())
    people.look_at_lake("pixels", learner, 28, {})
    path = tmp_path / "lake" / "pixels.json"
    first = path.read_text()
    said = json.loads(first)
    assert np.shape(said["answers"]) == (20, 20) and len(said["looked"]) == 10
    assert np.mean(said["errors"]) == pytest.approx(
        lake_error(learner, load_lake_runs(size=28))[0]
    )
    people.look_at_lake("pixels", None, 28, {})
    assert path.read_text() == first
