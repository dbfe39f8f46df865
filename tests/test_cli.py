import os

import pytest
from typer.testing import CliRunner

from metadropout_nb.cli import app

TINY = ["--size", "16", "--tasks", "16", "--test-tasks", "3", "--jobs", "1"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_compare_then_redraw(run, tmp_path):
    first = run("compare", *TINY, "--seeds", 2, "--out", "here")
    assert first.exit_code == 0, first.output
    for word in ("none", "meta", "accuracy %", "sd %", "loss", ">50%", ">80%", ">90%", "meta - none", "over 2 seeds"):
        assert word in first.output
    assert first.output.rstrip().endswith("are in here/") and "4 result files" in first.output
    assert (tmp_path / "here" / "comparison.png").stat().st_size > 5000
    (tmp_path / "here" / "comparison.png").unlink()
    again = run("compare", "--from", "here")
    assert again.exit_code == 0 and (tmp_path / "here" / "comparison.png").exists()
    rows = [[line for line in result.output.splitlines() if "original" in line] for result in (first, again)]
    assert rows[0] == rows[1] and len(rows[0]) == 3, "two arms and a difference, the same again"


def test_train_then_evaluate(run, tmp_path):
    trained = run("train", "--learner", "proto", "--size", 16, "--tasks", 16, "--out", "mine", "--threads", 1)
    assert trained.exit_code == 0 and "metadropout evaluate mine" in trained.output
    tested = run("evaluate", "mine", "--test-tasks", 3)
    assert tested.exit_code == 0 and "accuracy" in tested.output
    assert (tmp_path / "mine" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [("--arm", "all", "meta"), ("--learner", "mnl", "original"), ("--data", "mnist", "glyphs")],
)
def test_unknown_names_list_the_known_ones(run, option, value, told):
    result = run("compare", option, value)
    assert result.exit_code == 2 and value in result.output and told in result.output


def test_results_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    result = run("compare", *TINY, "--out", tmp_path / "file" / "runs")
    assert result.exit_code == 1 and "Error" in result.output and "Traceback" not in result.output
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        assert run("compare", *TINY, "--out", tmp_path / "locked").exit_code == 1


def test_omniglot_that_is_not_there(run, monkeypatch, tmp_path):
    monkeypatch.setenv("METADROPOUT_DATA", str(tmp_path / "nowhere"))
    result = run("compare", *TINY, "--data", "omniglot", "--size", 17)
    assert result.exit_code == 1 and "METADROPOUT_DATA" in result.output and "glyphs" in result.output


@pytest.mark.parametrize("words", [["compare", "--from", "none"], ["evaluate", "none"]])
def test_nothing_there(run, words):
    result = run(*words)
    assert result.exit_code == 1 and "Error" in result.output and "Traceback" not in result.output


def test_help_teaches(run):
    assert "--data omniglot" in run("compare", "--help").output
    assert all(name in run("--help").output for name in ("compare", "train", "evaluate", "notebooks"))
