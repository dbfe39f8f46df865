"""Checkers of the exercises refuse answers that look right and are not."""

import importlib.util
from collections import Counter

import matplotlib
import pytest
from conftest import ROOT

from metadropout_nb.exercises import CHECKERS, check

matplotlib.use("agg")


def wrong_answers():
    "Name of the exercise and answer, from the modules in tests/exercises."
    for path in sorted((ROOT / "tests" / "exercises").glob("chapter_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, answers in module.WRONG.items():
            for answer in answers:
                yield pytest.param(name, answer, id=f"{name}-{answer.__name__}")


WRONG = list(wrong_answers())


@pytest.mark.parametrize("name, answer", WRONG)
def test_a_plausible_wrong_answer_is_refused(name, answer, capsys):
    assert not check(name, answer), answer.__doc__
    said = capsys.readouterr().out
    meant = "raises" in answer.__doc__.lower()
    assert meant or "your function raises" not in said, "it is wrong otherwise"
    assert "not yet: " in said and len(said.split()) >= 4, "say what is missing"


@pytest.mark.parametrize("name", CHECKERS)
def test_an_answer_of_another_type_is_told_as_one(name, capsys):
    keys = "meta", "standard", "untrained", "trained", "gap", "gain", "seeds"
    assert not check(name, lambda *inputs, **settings: dict.fromkeys(keys, 0.5))
    said = capsys.readouterr().out
    assert "not yet: " in said and "your function raises" not in said


def test_a_result_in_place_of_the_function(capsys):
    assert not check("03.1", 0.5)
    assert "give your function itself" in capsys.readouterr().out


def test_an_exercise_that_is_not_there_is_no_fault_of_the_answer():
    with pytest.raises(ValueError, match="unknown exercise '3.1': choose one of"):
        check("3.1", len)


def test_three_wrong_answers_are_kept_for_every_checker():
    kept = Counter(param.values[0] for param in WRONG)
    assert [name for name in CHECKERS if kept[name] < 3] == []
