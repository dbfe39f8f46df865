"""Checkers of the exercises refuse answers that look right and are not."""

import importlib.util

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
    assert "not yet: " in said and len(said.split()) >= 4, "say what is missing"


@pytest.mark.parametrize("name", CHECKERS)
def test_three_wrong_answers_are_kept_for_every_checker(name):
    assert sum(param.values[0] == name for param in WRONG) >= 3
