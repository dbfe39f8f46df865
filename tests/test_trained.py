import hashlib
import json
from importlib.resources import files

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from metadropout_nb.embedding_network import EmbeddingNetwork
from metadropout_nb.meta_dropout import MetaDropout
from metadropout_nb.omniglot import glyphs
from metadropout_nb.runs import LEARNERS, Run, build_learner, frozen_tasks
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.trained import load_learner, pretrained, save_learner
from metadropout_nb.training import evaluate

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
    assert "`Sequential` of their own" in card and "train_learner" not in card


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
    assert (folder / "weights.safetensors").stat().st_size < 2_000_000


def test_no_such_pretrained_learner():
    with pytest.raises(ValueError, match="choose one of eb, maml, original, proto"):
        pretrained("resnet")
