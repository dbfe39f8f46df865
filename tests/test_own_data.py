"""Pictures of one's own, from the folder to the verdict, by the command alone."""

import json
import pickle
import random
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import broken_off
from PIL import Image
from test_cli import TINY

from metadropout_nb import runs
from metadropout_nb.omniglot import load_folder, load_folders, resize
from metadropout_nb.runs import (
    Run,
    build_learner,
    frozen_tasks,
    load_results,
    own_data,
    training_characters,
)
from metadropout_nb.trained import load_learner

OWN = re.compile(r"own-[0-9a-f]{12}")


def picture(path: Path, seed: int, size=(24, 18), color=True) -> None:
    shape = (size[1], size[0], 3) if color else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    "12 classes of 3 to 5 colour pictures of several shapes, and what lies about."
    root = tmp_path / "photos"
    for c in range(12):
        for i in range(3 + c % 3):
            size = [(24, 18), (18, 24), (20, 20), (31, 7)][i % 4]
            ending = ["png", "PNG", "webp", "JPG"][(c + i) % 4]
            picture(root / f"class {c:02}" / f"{i}.{ending}", 100 * c + i, size)
        (root / f"class {c:02}" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / "class 00" / "._0.png").write_bytes(b"Mac OS X")
    (root / "notes.txt").write_text("taken in summer")
    return root


class TestShapes:
    @pytest.mark.parametrize("color", [False, True])
    @pytest.mark.parametrize(
        ("wide", "high", "rows", "columns"),
        [
            (40, 20, slice(2, 6), slice(0, 8)),
            (20, 40, slice(0, 8), slice(2, 6)),
            (8, 8, slice(0, 8), slice(0, 8)),
            (5000, 1, slice(3, 4), slice(0, 8)),  # a pixel is left of it
            (2, 4, slice(0, 8), slice(2, 6)),  # enlarged
        ],
    )
    def test_whole_and_in_the_middle(self, tmp_path, wide, high, rows, columns, color):
        (tmp_path / "a").mkdir()
        Image.new("RGB", (wide, high)).save(tmp_path / "a" / "1.png")
        drawing = load_folder(tmp_path, 8, color).images[0, 0]
        expected = torch.zeros(8, 8, dtype=torch.uint8)
        expected[rows, columns] = 255
        assert torch.equal(drawing, expected.expand_as(drawing))

    def test_as_they_are_the_longer_side_is_the_square(self, tmp_path):
        picture(tmp_path / "a" / "1.png", 0, (9, 4), color=False)
        (drawing,) = load_folder(tmp_path, None).images[0]
        ink = 255 - np.asarray(Image.open(tmp_path / "a" / "1.png"))
        assert np.array_equal(drawing[2:6], ink) and drawing.shape == (9, 9)
        assert not drawing[:2].any() and not drawing[6:].any()

    def test_squares_are_only_resized(self, tmp_path):
        picture(tmp_path / "a" / "1.png", 0, (105, 105), color=False)
        whole, small = (load_folder(tmp_path, size).images for size in (None, 28))
        assert torch.equal(small, resize(whole, 28))

    def test_a_large_photograph_is_averaged_over_all_its_pixels(self, tmp_path):
        "Though a JPEG is decoded at a fraction of its size."
        wave = np.sin(np.linspace(0, 20, 1600))[:, None] * np.ones(1600)
        gray = 127 + 100 * wave + np.random.default_rng(0).normal(0, 9, wave.shape)
        (tmp_path / "a").mkdir()
        for name in ("1.png", "2.jpg"):
            Image.fromarray(gray.astype(np.uint8)).save(tmp_path / "a" / name)
        png, jpg = load_folder(tmp_path, 28).images[0].int()
        assert (png - jpg).abs().max() <= 6  # a single pixel is off by up to 30


def test_few_classes_make_tasks_of_few_ways(run, tmp_path):
    few = tmp_path / "few"
    for c in range(6):
        for i in range(3):
            picture(few / f"{c}" / f"{i}.png", 10 * c + i)
    with pytest.raises(ValueError, match="5"):
        own_data(few, size=16)
    words = ["--data", few, "--size", 16, "--tasks", 2, "--threads", 1, "--out", "mine"]
    assert run("train", *words).exit_code == 1
    trained = run("train", *words, "--n-way", 3, "--k-shot", 2)
    assert trained.exit_code == 0, trained.output
    _, of_it = load_learner("mine")
    assert (of_it.n_way, of_it.k_shot, of_it.n_query) == (3, 2, 1)
    of_it = replace(of_it, folders=(str(few),))
    assert frozen_tasks(of_it, 2).support_x.shape[:2] == (2, 6)


class TestColor:
    def test_is_found(self, photos, tmp_path):
        assert own_data(photos, size=16)["color"]
        assert not own_data(photos, size=16, color=False)["color"]
        gray = tmp_path / "gray"
        for c in range(10):
            for i in range(2):
                picture(gray / f"{c}" / f"{i}.png", 10 * c + i, color=False)
        assert not own_data(gray, size=16)["color"]
        picture(gray / "3" / "2.png", 0)
        assert own_data(gray, size=16)["color"]

    @pytest.mark.parametrize("learner", ["proto", "eb", "original", "maml"])
    def test_a_learner_has_three_channels(self, photos, learner):
        one = Run(learner, size=16, color=True)
        assert build_learner(one).network.blocks[0].conv.weight.shape[1] == 3


class TestName:
    def test_is_of_what_was_read(self, photos, tmp_path):
        name = own_data(photos, size=16)["data"]
        assert OWN.fullmatch(name)
        moved = photos.rename(tmp_path / "moved")
        (moved / "class 03" / "0.JPG").touch()
        shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "moved")
        assert own_data(moved, size=16)["data"] == name
        assert own_data(tmp_path / "packed.zip", size=16)["data"] == name
        others = [own_data(moved, size=20), own_data(moved, size=16, color=False)]
        picture(moved / "class 03" / "0.JPG", 7)
        others += [own_data(moved, size=16)]
        (moved / "class 04" / "1.png").unlink(missing_ok=True)
        picture(moved / "class 04" / "9.png", 7)
        others += [own_data(moved, size=16)]
        assert len({name, *(one["data"] for one in others)}) == 5

    def test_where_they_lie_is_no_part_of_a_run(self, photos):
        here = Run(**own_data(photos, size=16))
        there = Run(**own_data(photos, size=16) | {"folders": ("elsewhere",)})
        assert here == there and hash(here) == hash(there) and here.name == there.name
        assert str(photos) not in repr(here)
        assert pickle.loads(pickle.dumps(here)).folders == (str(photos),)

    def test_other_pictures_are_refused(self, photos):
        one = Run(**own_data(photos, size=16), test_tasks=2)
        frozen_tasks(one)
        picture(photos / "class 00" / "0.png", 99)
        assert own_data(photos, size=16)["data"] != one.data
        with pytest.raises(ValueError, match=f"are own-.*, not {one.data}"):
            frozen_tasks(one)
        with pytest.raises(ValueError, match="say where they lie"):
            frozen_tasks(Run(data=one.data))
        with pytest.raises(ValueError, match="not glyphs"):
            training_characters(Run(folders=(str(photos),), size=16))

    @pytest.mark.parametrize("name", ["own-", "own-0123456789AB", "own-0123456789ab\n"])
    def test_no_other_text_is_one(self, name):
        with pytest.raises(ValueError, match="unknown data"):
            Run(data=name)


class TestSplit:
    def test_by_class_seeded_and_nothing_is_lost(self, photos):
        train, test = load_folders(photos, size=16, at_least=5)
        assert (len(train), len(test)) == (7, 5)
        assert len({*train.names, *test.names}) == 12
        assert sum(train.counts + test.counts) == 48
        assert load_folders(photos, size=16, at_least=5)[1].names == test.names

    def test_the_smallest_class_sets_the_queries(self, photos):
        own = own_data(photos, size=16)
        assert own["n_query"] == own["test_query"] == 2
        assert frozen_tasks(Run(**own, test_tasks=2)).query.shape[1] == 10


def test_from_the_folder_to_a_verdict_and_a_learner(run, photos, tmp_path):
    words = [*TINY, "--seeds", 1, "--arm", "none", "--arm", "meta"]
    first = run("compare", "--data", photos, *words)
    assert first.exit_code == 0, first.output
    (name,) = set(OWN.findall(first.output))
    assert "in color" in first.output and "meta instead of none" in first.output
    assert "12 classes" not in first.output and "7 classes to train on" in first.output
    files = sorted((tmp_path / "runs").glob("*.json"))
    assert len(files) == 2 and all(name in path.name for path in files)
    assert all(str(tmp_path) not in path.read_text() for path in files)
    again = run("compare", "--data", photos, *words)
    assert again.exit_code == 0 and files == sorted((tmp_path / "runs").glob("*.json"))

    picture(photos / "class 00" / "0.png", 99)  # and now it is another folder
    other = run("compare", "--data", photos, *words)
    assert other.exit_code == 0 and name not in other.output
    shown = run("compare", "--from", "runs")
    assert shown.exit_code == 0 and len(set(OWN.findall(shown.output))) == 2
    assert len(load_results("runs")) == 4

    # the line that it says to try next can be typed as it stands
    (line,) = (x for x in other.output.splitlines() if "metadropout train" in x)
    words = [*line.split()[1:], "--size", 16, "--tasks", 16, "--threads", 1]
    trained = run(*words)
    assert trained.exit_code == 0, trained.output
    (line,) = (x for x in trained.output.splitlines() if "evaluate" in x)
    words = line[line.index("evaluate") :].strip("`").split()
    tested = run(*words, "--test-tasks", 3)
    assert tested.exit_code == 0, tested.output
    _, of_it = load_learner("mine")
    evaluation = json.loads((tmp_path / "mine" / "evaluation.json").read_text())
    assert evaluation["data"] == of_it.data != name and of_it.color
    stranger = run("compare", "--from", "mine")
    assert stranger.exit_code == 1 and "metadropout evaluate mine" in " ".join(
        stranger.output.split()
    )

    picture(photos / "class 00" / "0.png", 98)
    runs._read_own.cache_clear()  # the next command is another process
    for words in (
        ["--data", photos],
        [],
        ["--data", "omniglot"],
        ["--train-data", photos / "class 00", "--test-data", photos / "class 01"],
    ):
        told = run("evaluate", "mine", *words)
        assert told.exit_code == 1 and "Error" in told.output, words
    assert evaluation == json.loads((tmp_path / "mine/evaluation.json").read_text())


def test_a_broken_training_never_goes_on_with_other_pictures(run, photos):
    words = ["train", "--data", photos, "--size", 16, "--tasks", 32, "--threads", 1]
    with broken_off():
        assert run(*words, "--out", "made").exit_code == 130
    picture(photos / "class 00" / "0.png", 99)
    for out in ("made", "whole"):
        assert run(*words, "--out", out).exit_code == 0
    made, whole = (load_learner(out)[0].state_dict() for out in ("made", "whole"))
    assert all(torch.equal(made[name], whole[name]) for name in whole)


def test_one_folder_to_train_and_one_to_test(run, photos, tmp_path):
    for c in range(6):
        target = tmp_path / "new" / f"class {c:02}"
        shutil.copytree(photos / target.name, target)
        shutil.rmtree(photos / target.name)
    words = ["--train-data", photos, "--test-data", tmp_path / "new"]
    told = run("compare", *words, *TINY, "--seeds", 1, "--arm", "none")
    assert told.exit_code == 0, told.output
    assert "6 classes to train on, 6 to test on" in " ".join(told.output.split())


def test_a_tilde_is_the_home_folder_in_options_too(
    run,
    photos,
    tmp_path,
    monkeypatch,
):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    words = [*TINY, "--seeds", 1, "--arm", "none", "--out=~/made"]
    assert run("compare", "--data=~/photos", *words).exit_code == 0
    assert run("compare", "--from=~/made").exit_code == 0
    words = ["--learner=proto", "--size=16", "--tasks=16", "--threads=1"]
    assert run("train", "--data=~/photos", *words, "--out=~/mine").exit_code == 0
    tested = run("evaluate", "~/mine", "--data=~/photos", "--test-tasks=3")
    assert tested.exit_code == 0, tested.output
    assert not list((tmp_path / "work").iterdir())


def few_classes(root: Path) -> None:
    for c in range(9):
        picture(root / f"{c}" / "1.png", c)
        picture(root / f"{c}" / "2.png", c)


def few_pictures(root: Path) -> None:
    for c in range(12):
        for i in range(1 if c == 7 else 3):
            picture(root / f"{c}" / f"{i}.png", c)


def split_already(root: Path) -> None:
    for c in range(12):
        for part in ("train", "val", "test"):
            picture(root / part / f"{c}" / "1.png", c)


def no_classes(root: Path) -> None:
    picture(root / "1.png", 1)


def a_text(root: Path) -> None:
    root.write_text("no zip")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (few_classes, "has 9 classes, too few: .* 10; add folders"),
        (few_pictures, "1 picture of 7, .*add some"),
        (split_already, "split already.*--train-data"),
        (no_classes, "one folder a class"),
        (a_text, "cannot be read: File is not a zip"),
    ],
)
@pytest.mark.parametrize("verb", ["compare", "train"])
def test_what_does_not_suffice_says_what_to_do(run, tmp_path, make, told, verb):
    make(tmp_path / "photos")
    result = run(verb, "--data", "photos", "--out", "made")
    assert result.exit_code == 1, result.output
    assert re.search(told, " ".join(result.output.split())), result.output
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        *((verb, ["--data", "nowhere"]) for verb in ("compare", "train", "evaluate")),
        ("compare", ["--data", ""]),
        ("compare", ["--train-data", "photos"]),
        ("compare", ["--train-data", "photos", "--test-data", ""]),
        (
            "compare",
            ["--data", "photos", "--train-data", "photos", "--test-data", "photos"],
        ),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(run, photos, words, verb):
    more = {"train": ["--out", "made"], "evaluate": ["made"]}.get(verb, [])
    assert run(verb, *more, *words).exit_code == 2


def arguments(rng: random.Random) -> list[str]:
    "Any words, mostly known ones with values of which some are wrong."
    verb = rng.choice(["compare", "compare", "train", "train", "evaluate", "mend"])
    tiny = ["--size", "16", "--tasks", "2"] if verb in ("compare", "train") else []
    tiny += ["--test-tasks", "2"] if verb in ("compare", "evaluate") else []
    tiny += ["--seeds", "1", "--jobs", "1"] if verb == "compare" else []
    tiny += ["--threads", "1", "--out", "out"] if verb == "train" else []
    tiny += ["made"] if verb == "evaluate" else []
    places = ["photos", "few", "file", "made", "out", "gone", "", "~", "\x1b[2J", "é"]
    data = [*places, "glyphs", "omniglot", "validation", "photos/class 00"]
    values = {
        "--learner": ["proto", "eb", "original", "maml", "MAML", ""],
        "--arm": ["none", "standard", "meta", "separate", "support", "all"],
        "--seeds": ["1", "2", "0", "-1", "x"],
        "--seed": ["0", "7", "-1", "9" * 30],
        "--data": data,
        "--train-data": data,
        "--test-data": data,
        "--train-classes": ["5", "7", "4", "900", "1.5"],
        "--size": ["16", "17", "20", "15", "0", "99999", "9" * 30, "1e3"],
        "--tasks": ["1", "2", "0", "nan"],
        "--test-tasks": ["2", "3", "1", "9" * 12, "٣"],
        "--threads": ["1", "0", "2000"],
        "--jobs": ["1", "0", "all"],
        "--out": [place for place in places if place.isprintable()],
        "--from": places,
    }
    flags = ["--bfloat16", "--no-bfloat16", "--color", "--gray", "--help", "--so"]
    words = []
    for _ in range(rng.randrange(5)):
        option = rng.choice([*values, *flags])
        words += [option, *([rng.choice(values[option])] if option in values else [])]
    if words and rng.random() < 0.1:
        words.pop(rng.randrange(len(words)))
    return [verb, *tiny, *words]


@pytest.mark.filterwarnings("ignore")
def test_any_arguments_end_in_results_or_a_sentence(
    run,
    photos,
    tmp_path,
    monkeypatch,
    numbers=range(60),
):
    for name in ("HOME", "METADROPOUT_DATA", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr(runs, "FAMILIAR_TASKS", 2)
    few_classes(tmp_path / "few")
    Path("file").write_text("mine")
    words = ["--size=16", "--tasks=2", "--threads=1", "--out=made", "--learner=proto"]
    assert run("train", *words).exit_code == 0
    kept = [*photos.rglob("*.*"), *(tmp_path / "few").rglob("*.*"), Path("file")]
    kept = {path: path.read_bytes() for path in kept if path.is_file()}
    codes = []
    for number in numbers:
        words = arguments(random.Random(number))
        with warnings.catch_warnings():
            told = run(*words)
        codes.append(told.exit_code)
        assert told.exit_code in (0, 1, 2), (number, words, told.exception)
        assert isinstance(told.exception, SystemExit | None), (number, words)
        assert "Traceback" not in told.output and "\x1b[2J" not in told.output, words
        assert "Error" in told.output or told.exit_code == 0, (number, words)
        assert all(path.read_bytes() == content for path, content in kept.items())
        for path in tmp_path.rglob("*"):
            assert path.suffix != ".tmp", (number, words, path)
            if path.suffix == ".json":
                json.loads(path.read_text())
    assert {0, 1, 2} <= set(codes)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_results_among_the_pictures_are_refused(run, photos, command):
    told = run(command, "--data", photos, "--out", photos / "made", *TINY[:4])
    assert told.exit_code == 2 and "would become a class" in told.output.replace(
        "\n", ""
    )
    assert not (photos / "made").exists()
