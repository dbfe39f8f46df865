import hashlib
import json
from importlib.resources import files

import pytest
import torch
from safetensors.torch import load_file, save_file

from metadropout_nb.comparison import LEARNERS, Run, build_learner, frozen_tasks
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
