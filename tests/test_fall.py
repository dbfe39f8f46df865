"""The fall at 105x105 of chapter 10: what benchmarks/fall.py measured, and its pool."""

import json
from dataclasses import replace

import fall
import numpy as np
import pytest
import torch
from torch.nn.functional import max_pool2d

from metadropout_nb.omniglot import glyphs
from metadropout_nb.runs import Run, build_learner
from metadropout_nb.tasks import TaskSampler


def test_every_learner_has_a_file_with_all_that_the_script_measures():
    tasks = TaskSampler(glyphs(10, n_drawings=4, size=16), n_query=2).sample(2)
    learner = build_learner(replace(fall.RUNS[2], data="glyphs", size=16))
    wanted = fall.taken_apart(learner, tasks, tasks)
    for run in fall.RUNS:
        found, result = (
            json.loads((fall.RESULTS / folder / f"{run.name}.json").read_text())
            for folder in ("why/fall", ".")
        )
        assert Run(**found["run"]) == run
        assert found["shift"].keys() == wanted["shift"].keys()
        assert found["conditions"].keys() == wanted["conditions"].keys()
        for measured in found["conditions"].values():
            assert {len(values) for values in measured.values()} == {100}
        as_trained = np.mean(found["conditions"]["as trained"]["accuracy"])
        same_tasks = np.mean(result["accuracies"][:100])  # with more queries
        assert as_trained == pytest.approx(same_tasks, abs=0.02), run.name


def test_the_expected_pool_is_the_mean_of_pools_behind_masks():
    torch.manual_seed(0)
    x, p = torch.randn(1, 3, 4, 4), 0.3
    kept = torch.rand(20_000, 3, 4, 4) >= p
    mean = max_pool2d(x.relu() * kept / (1 - p), 2).mean(0)
    assert torch.allclose(fall.ExpectedPool(p)(x)[0], mean, atol=0.03)
