import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import NOTEBOOKS, ROOT, broken_off, going_on
from typer.testing import CliRunner

from metadropout_nb import __version__, cli, runs
from metadropout_nb.cli import app
from metadropout_nb.comparison import planned_runs
from metadropout_nb.meta_dropout import ARMS
from metadropout_nb.runs import DATA, LEARNERS, Run, build_learner, load_results
from metadropout_nb.trained import load_learner, save_learner

TINY = ["--size", "16", "--tasks", "16", "--test-tasks", "3", "--jobs", "1"]


def test_compare_then_redraw(run, tmp_path):
    first = run("compare", *TINY, "--seeds", 2, "--out", "here")
    assert first.exit_code == 0, first.output
    for word in (
        "none",
        "meta",
        "accuracy %",
        "sd %",
        "loss",
        ">50%",
        ">80%",
        ">90%",
        "meta - none",
        "over 2 seeds",
    ):
        assert word in first.output
    assert (
        "6 result files" in first.output
        and "metadropout compare --from here" in first.output
    )
    (figure,) = (tmp_path / "here").glob("*.png")
    settings = "16px-5way-1shot-16tasks-test_tasks=3-train_classes=10"
    assert figure.name == f"comparison-glyphs-{settings}.png"
    assert figure.stat().st_size > 5000
    figure.unlink()
    again = run("compare", "--from", "here")
    assert again.exit_code == 0 and figure.exists()
    rows = [
        [x for x in result.output.splitlines() if x.startswith(" proto")]
        for result in (first, again)
    ]
    assert len(rows[0]) == 5 and rows[1][:5] == rows[0], (
        "three arms and two differences, the same again"
    )
    assert "bootstrap" in again.output and "bootstrap" not in first.output


def write_results(folder, *runs):
    folder.mkdir(exist_ok=True)
    for one in runs:
        rng = np.random.default_rng([one.seed, one.mask_seed or 0])
        accuracies = rng.uniform(0.5, 1, one.test_tasks).tolist()
        content = {
            "run": asdict(one),
            "accuracies": accuracies,
            "losses": [1.0] * one.test_tasks,
        }
        (folder / f"{one.name}.json").write_text(json.dumps(content))


def test_without_options_it_ends_in_a_verdict_and_says_what_next(run, monkeypatch):
    asked = []

    def sweep(runs, folder, *_):
        asked.extend(runs)
        write_results(folder, *runs)
        return load_results(folder)

    monkeypatch.setattr(runs, "sweep", sweep)
    told = run("compare")
    assert told.exit_code == 0, told.output
    assert {one.train_classes for one in asked} == {cli.FEW_GLYPHS}
    assert {one.arm for one in asked} == {"none", "standard", "meta"}
    verdicts = ("helps", "hurts", "no difference", "undecided")
    for arm in ("standard", "meta"):
        (line,) = (x for x in told.output.splitlines() if f"{arm} - none" in x)
        assert any(one in line for one in verdicts), line
    # what it says to try next can be typed as it stands
    last = told.output[told.output.index("What to try next") :]
    asked.clear()
    words = [x.split() for x in last.splitlines() if x.startswith("  metadropout ")]
    assert len(words) == 3
    for line in words:
        again = run(*line[1:])
        assert again.exit_code == 0, again.output
    assert {(one.data, one.train_classes) for one in asked} == {
        ("glyphs", 200),
        ("omniglot", 30),
    }
    assert "--train-classes 200" not in run("compare", "--data", "omniglot").output


def test_omniglot_has_all_its_characters_unless_told(run, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "sweep", lambda todo, *_, **__: asked.extend(todo) or [])
    for words, expected in (
        (["--data", "omniglot"], None),
        (["--data", "omniglot", "--train-classes", 30], 30),
        (["--train-classes", 30], 30),
        ([], cli.FEW_GLYPHS),
        (["--n-way", 20, "--k-shot", 5], 20),
    ):
        asked.clear()
        run("compare", "--seeds", 1, *words)
        assert {one.train_classes for one in asked} == {expected}
    assert {(one.n_way, one.k_shot) for one in asked} == {(20, 5)}
    asked.clear()
    run("compare", "--seeds", 1, "--arm", "meta", "--arm", "meta")
    assert len(asked) == 1, "an arm given twice"
    assert run("compare", "--n-way", 1).exit_code == 2


def test_a_folder_of_several_protocols(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        runs, "sweep", lambda *_: pytest.fail("--from must train nothing")
    )
    arms = [
        Run(arm=arm, seed=s, data="omniglot", test_tasks=20)
        for arm in ("none", "meta")
        for s in range(5)
    ]
    arms += [replace(one, learner="eb") for one in arms]
    arms += [
        replace(one, arm="standard") for one in arms if one.arm == "meta"
    ]  # no claim is about these
    doses = [replace(one, dose=2.0) for one in arms if one.arm == "meta"]
    others = [replace(one, size=105) for one in arms[:5]] + [
        replace(arms[5], mask_seed=s) for s in range(1, 4)
    ]
    write_results(tmp_path / "here", *arms, *doses, *others)
    shown = run("compare", "--from", "here")
    assert shown.exit_code == 0, shown.output
    titles = ["28x28, 5-way 1-shot", "105x105", "only the masks differ"]
    places = [shown.output.index(title) for title in titles]
    assert places[0] == min(places), "the main protocol first"
    for word in (
        "meta x2 - none",
        "no difference",
        "not run yet",
        "rank 2",
        "mask seeds",
        "masks alone",
        "claimed %",
    ):
        assert word in shown.output, word
    figures = sorted(path.name for path in (tmp_path / "here").glob("*.png"))
    main = "omniglot-28px-5way-1shot-2000tasks-test_tasks=20"
    assert figures == sorted(
        [f"{name}-{main}.png" for name in ("comparison", "claims")]
        + [
            f"comparison-{main}-masks-of-seed0.png",
            f"comparison-{main.replace('28px', '105px')}.png",
        ]
    )


def test_the_planned_experiment_goes_on_from_what_is_there(run, tmp_path, monkeypatch):
    asked = []

    def sweep(runs, folder, *_):
        asked.extend(runs)
        write_results(folder, *(replace(one, test_tasks=20) for one in runs[:12]))
        return load_results(folder)

    monkeypatch.setattr(runs, "sweep", sweep)
    assert run("compare", "--planned", "--out", "here").exit_code == 0
    assert asked == planned_runs()

    done = [
        Run("eb", arm, 100 + seed, "omniglot", train_classes=30)
        for arm in ("none", "meta")
        for seed in range(12)
    ]
    write_results(tmp_path / "there", *done)
    for one in done[::2]:  # every other seed: far apart
        path = tmp_path / "there" / f"{one.name}.json"
        result = json.loads(path.read_text())
        factor = 0.8 if one.arm == "meta" else 1
        path.write_text(
            json.dumps(
                result
                | {"accuracies": [factor * value for value in result["accuracies"]]}
            )
        )
    asked.clear()
    expected = planned_runs(load_results("there"))
    run("compare", "--planned", "--out", "there")
    assert asked == expected != planned_runs(), "four more seeds"


def test_a_folder_may_have_any_name(run):
    shown = run("compare", *TINY, "--seeds", 1, "--out", "runs[/old]")
    assert shown.exit_code == 0 and "runs[/old]" in shown.output.replace("\n", "")
    told = run("compare", "--from", "w3[/old]")
    assert told.exit_code == 1 and "w3[/old]" in told.output.replace("\n", "")


def test_train_then_evaluate(run, tmp_path):
    trained = run(
        "train",
        "--learner",
        "proto",
        "--size",
        16,
        "--tasks",
        16,
        "--out",
        "mine",
        "--threads",
        1,
    )
    assert trained.exit_code == 0 and "metadropout evaluate mine" in trained.output
    tested = run("evaluate", "mine", "--test-tasks", 3)
    assert tested.exit_code == 0 and "accuracy" in tested.output
    assert (tmp_path / "mine" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--arm", "all", "meta"),
        ("--learner", "mnl", "original"),
        ("--data", "mnist", "glyphs"),
    ],
)
def test_unknown_names_list_the_known_ones(run, option, value, told):
    result = run("compare", option, value)
    assert result.exit_code == 2 and value in result.output and told in result.output


def test_results_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    result = run("compare", *TINY, "--out", tmp_path / "file" / "runs")
    assert (
        result.exit_code == 1
        and "Error" in result.output
        and "Traceback" not in result.output
    )
    if os.name == "posix" and os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        assert run("compare", *TINY, "--out", tmp_path / "locked").exit_code == 1


def test_omniglot_that_is_not_there(run, monkeypatch, tmp_path):
    monkeypatch.setenv("METADROPOUT_DATA", str(tmp_path / "nowhere"))
    result = run("compare", *TINY, "--data", "omniglot", "--size", 17)
    assert (
        result.exit_code == 1
        and "METADROPOUT_DATA" in result.output
        and "glyphs" in result.output
    )


@pytest.mark.parametrize("words", [["compare", "--from", "none"], ["evaluate", "none"]])
def test_nothing_there(run, words):
    result = run(*words)
    assert (
        result.exit_code == 1
        and "Error" in result.output
        and "Traceback" not in result.output
    )


def test_notebooks_copies_the_course_and_keeps_what_is_yours(run, tmp_path):
    first = run("notebooks", "mine", "--no-open")
    assert first.exit_code == 0, first.output
    chapter, result = (
        tmp_path / "mine/nbs/01_characters.ipynb",
        next((tmp_path / "mine/results/first_study").glob("*.json")),
    )
    assert chapter.read_bytes() == (ROOT / "nbs/01_characters.ipynb").read_bytes()
    assert len(list((tmp_path / "mine/nbs").glob("*.ipynb"))) == len(NOTEBOOKS)
    chapter.write_text("my notes")
    result.unlink()
    again = run("notebooks", "mine", "--no-open")
    assert (
        "mine/: 1" in again.output and "kept: nbs/01_characters.ipynb" in again.output
    )
    assert chapter.read_text() == "my notes" and result.exists()
    assert not list((tmp_path / "mine").rglob("*.tmp"))


def test_the_wheel_carries_course_results_and_learners(tmp_path):
    for name in (
        "setup.py",
        "settings.ini",
        "README.md",
        "LICENSE",
        "pyproject.toml",
        "MANIFEST.in",
    ):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("nbs", "results", "metadropout_nb"):
        shutil.copytree(ROOT / name, tmp_path / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        "dist",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"metadropout_nb/course/nbs/{path.name}" for path in NOTEBOOKS} <= names
    assert {
        f"metadropout_nb/weights/{name}/weights.safetensors" for name in LEARNERS
    } <= names
    assert any(name.startswith("metadropout_nb/course/results/") for name in names)


def test_the_names_are_those_of_the_modules():
    for choice, known in (
        (cli.LearnerName, LEARNERS),
        (cli.Arm, ARMS),
    ):
        assert [one.value for one in choice] == list(known)
    assert cli.DATA_NAMES == DATA


def test_help_imports_nothing_that_takes_long():
    code = """
import sys
from typer.testing import CliRunner
from metadropout_nb.cli import app
for verb in ([], ["compare"], ["train"], ["evaluate"], ["notebooks"]):
    assert CliRunner().invoke(app, [*verb, "--help"]).exit_code == 0
assert CliRunner().invoke(app, ["--version"]).exit_code == 0
print(*sys.modules)
"""
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "metadropout_nb.cli" in loaded.split()
    heavy = {"torch", "scipy", "matplotlib", "joblib", "numpy", "metadropout_nb.runs"}
    assert not heavy & set(loaded.split())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
@pytest.mark.parametrize("words", ["--version", "--help", "compare --help"])
def test_output_that_cannot_be_written_costs_a_sentence(words):
    command = f"{sys.executable} -m metadropout_nb {words} > /dev/full"
    told = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert told.returncode == 1
    assert "No space left" in told.stderr and "Traceback" not in told.stderr


@pytest.mark.parametrize("words", [["--version"], ["compare", "--help"]])
def test_as_a_module_it_is_the_same_command(run, words):
    command = [sys.executable, "-m", "metadropout_nb", *words]
    env = os.environ | {"COLUMNS": "140", "TERM": "dumb"}
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    runner = CliRunner(env={"COLUMNS": "140", "TERM": "dumb"})
    here = runner.invoke(app, words, prog_name="metadropout")
    assert told.stderr == ""
    assert told.stdout.split() == here.output.split()


def test_the_version(run):
    told = run("--version")
    assert told.exit_code == 0 and told.output == f"metadropout_nb {__version__}\n"


@pytest.mark.filterwarnings("ignore:this processor has no bfloat16")
def test_bfloat16_is_another_run(run, tmp_path):
    words = ["compare", *TINY, "--seeds", 1, "--arm", "none", "--out", "here"]
    for more in ([], ["--bfloat16"]):
        told = run(*words, *more)
        assert told.exit_code == 0, told.output
    plain, half = sorted(load_results("here"), key=lambda one: one["run"]["bfloat16"])
    assert (plain["run"]["bfloat16"], half["run"]["bfloat16"]) == (False, True)
    assert plain["losses"] != half["losses"]


@pytest.mark.filterwarnings("ignore:this processor has no bfloat16")
def test_a_learner_is_tested_in_the_precision_of_its_training(run, tmp_path):
    words = ["--learner", "proto", "--size", 16, "--tasks", 16, "--threads", 1]
    assert run("train", *words, "--out", "mine", "--bfloat16").exit_code == 0
    assert load_learner("mine")[1].bfloat16

    def losses(*more):
        assert run("evaluate", "mine", "--test-tasks", 3, *more).exit_code == 0
        return json.loads((tmp_path / "mine/evaluation.json").read_text())["losses"]

    assert losses() == losses("--bfloat16") != losses("--no-bfloat16")


@pytest.mark.parametrize(
    ("words", "of", "name"),
    [
        (["compare", "--seeds", 1], runs, "sweep"),
        (["train", "--out", "made"], runs, "train_learner"),
        (["evaluate", "mine"], LEARNERS["original"], "to"),
    ],
)
def test_a_device_is_used_or_refused_before_anything_is_written(
    run, tmp_path, monkeypatch, words, of, name
):
    def called(*arguments, **_):
        raise ValueError(f"called on {arguments[-1]}")

    one = Run(size=16, test_tasks=3)
    save_learner(build_learner(one), one, tmp_path / "mine")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    told = run(*words, "--device", "cuda")
    assert told.exit_code == 1
    assert "unknown device 'cuda': choose one of cpu" in told.output
    assert os.listdir() == ["mine"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(runs, "processor", lambda device: device)
    monkeypatch.setattr(of, name, called)
    assert "called on cuda:1" in run(*words, "--device", "cuda:1").output
    assert "called on cpu" in run(*words).output


def test_help_teaches(run):
    assert "--data omniglot" in run("compare", "--help").output
    assert all(
        name in run("--help").output
        for name in ("compare", "train", "evaluate", "notebooks")
    )


def test_train_goes_on_where_it_was_broken_off(run, tmp_path):
    words = [
        "train",
        "--out",
        "made",
        "--learner",
        "eb",
        "--size",
        "16",
        "--tasks",
        "216",
        "--threads",
        "1",
    ]
    with broken_off():
        assert run(*words).exit_code == 130
    assert [path.name for path in (tmp_path / "made").iterdir()] == [
        "checkpoint.safetensors"
    ]
    with going_on():
        assert run(*words).exit_code == 0
    assert run(*words[:2], "whole", *words[3:]).exit_code == 0
    made, whole = (
        load_learner(tmp_path / name)[0].state_dict() for name in ("made", "whole")
    )
    assert all(torch.equal(made[name], whole[name]) for name in whole)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "README.md",
        "learner.json",
        "weights.safetensors",
    ]


@pytest.mark.parametrize("out", ["", "file"])
def test_what_is_no_folder_is_refused(run, tmp_path, out):
    (tmp_path / "file").touch()
    for option in (["compare", "--from"], ["train", "--out"], ["evaluate"]):
        told = run(*option, out)
        assert told.exit_code == 2 and f"'{out}' is no folder" in told.output


def test_arms_without_the_arm_none(run):
    told = run("compare", *TINY, "--seeds", 1, "--arm", "meta", "--out", "a:x:b")
    assert "--arm none" in told.output and "in a:x:b/" in told.output


def test_a_tilde_is_the_home_folder_in_python_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    one = Run("proto", size=16)
    save_learner(build_learner(one), one, "~/made")
    assert load_learner("~/made")[1] == one and (tmp_path / "made").exists()
    write_results(tmp_path / "runs", replace(one, test_tasks=3))
    assert len(load_results("~/runs")) == 1
    assert runs.sweep([], "~/new") == [] and (tmp_path / "new").is_dir()
