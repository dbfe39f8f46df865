"""Full disks, closed folders, damaged files, kill -9: clear errors, nothing lost."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, broken_off, going_on

from metadropout_nb.runs import (
    Run,
    build_learner,
    execute,
    read_result,
    sweep,
    train_learner,
    write_json,
)
from metadropout_nb.trained import load_learner, save_learner

TINY = {
    "size": 16,
    "n_way": 2,
    "n_query": 1,
    "tasks": 4,
    "test_tasks": 3,
    "meta_batch": 2,
    "test_query": 2,
}
RUN = Run("eb", "meta", **TINY)
REFUSED = (
    OSError,
    ValueError,
)  # what callers, and the command, expect of a disk or a file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def weights(learner):
    return torch.cat([p.flatten() for p in learner.parameters()])


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(
        "metadropout_nb.runs.fit", lambda *_, **__: pytest.fail("trained first")
    )


class TestSweep:
    def test_a_full_disk_loses_nothing_that_was_finished(self, tmp_path, full_disk):
        runs = [RUN, Run("eb", "none", **TINY)]
        (first,) = sweep(runs[:1], tmp_path)
        with full_disk(1000), pytest.raises(REFUSED, match="too large"):
            sweep(runs, tmp_path)
        assert [path.name for path in tmp_path.glob("*.json")] == [f"{RUN.name}.json"]
        assert not list(tmp_path.glob("*.tmp"))
        assert sweep(runs, tmp_path)[0] == first and names(tmp_path) == sorted(
            f"{run.name}.json" for run in runs
        )

    def test_no_room_for_the_result_itself(self, tmp_path, full_disk):
        path = tmp_path / "one.json"
        write_json(path, {"before": 1})
        with full_disk(10), pytest.raises(OSError, match="too large"):
            write_json(path, {"after": list(range(100))})
        assert json.loads(path.read_text()) == {"before": 1} and names(tmp_path) == [
            "one.json"
        ]

    def test_a_folder_that_cannot_be_written_is_found_out_before_the_training(
        self, read_only, no_training
    ):
        with pytest.raises(PermissionError, match=read_only.name):
            sweep([RUN], read_only)

    def test_whatever_happened_to_a_result_it_is_read_or_refused_by_name(
        self, tmp_path
    ):
        path = tmp_path / f"{RUN.name}.json"
        write_json(path, execute(RUN))
        whole = path.read_text()
        put = ["", "null", "[", "{", "1e999", "-", '"', "0", "true", "é", "\x00"]
        rng = random.Random(0)
        refused = 0
        for _ in range(400):
            start = rng.randrange(len(whole))
            damaged = (
                whole[:start]
                + rng.choice(put)
                + whole[start + rng.choice([0, 1, 1, 9, len(whole)]) :]
            )
            path.write_text(damaged)
            try:
                result = read_result(path)
            except ValueError as error:
                refused += 1
                assert str(path) in str(error)
            else:
                assert Run(**result["run"]) and np.isfinite(result["accuracies"]).all()
        assert refused > 200

    @pytest.mark.parametrize("text", ["[" * 100_000, '{"run": ' * 100_000])
    def test_hostile_json_is_refused_by_name(self, tmp_path, text):
        (tmp_path / "one.json").write_text(text)
        with pytest.raises(ValueError, match="one.json is not a result"):
            read_result(tmp_path / "one.json")


class TestCheckpoint:
    def test_a_full_disk_keeps_the_last_one(self, tmp_path, full_disk):
        file = tmp_path / "one.checkpoint"
        long = replace(RUN, tasks=102)
        with broken_off():
            train_learner(long, checkpoint=file)
        before = file.read_bytes()
        with full_disk(1000), pytest.raises(REFUSED, match="too large"):
            train_learner(long, checkpoint=file)
        assert file.read_bytes() == before and names(tmp_path) == ["one.checkpoint"]
        with going_on():
            resumed, _ = train_learner(long, checkpoint=file)
        assert torch.equal(weights(resumed), weights(train_learner(long)[0]))

    def test_a_folder_that_cannot_be_written(self, read_only):
        with pytest.raises(REFUSED, match="denied"):
            train_learner(RUN, checkpoint=read_only / "one.checkpoint")


class TestLearner:
    @pytest.fixture
    def folder(self, tmp_path):
        return save_learner(build_learner(RUN), RUN, tmp_path / "learner")

    def save_another(self, folder):
        other = Run("eb", "meta", 1, **TINY)
        save_learner(build_learner(other), other, folder)

    def still_there(self, folder):
        learner, run = load_learner(folder)
        assert run == RUN and torch.equal(weights(learner), weights(build_learner(RUN)))
        assert names(folder) == ["README.md", "learner.json", "weights.safetensors"]

    def test_a_full_disk_keeps_the_one_before(self, folder, full_disk):
        with full_disk(1000), pytest.raises(REFUSED, match="too large"):
            self.save_another(folder)
        self.still_there(folder)

    def test_room_for_the_weights_but_not_for_the_rest(self, folder, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pathlib.Path.write_text", full)
        with pytest.raises(OSError, match="No space"):
            self.save_another(folder)
        self.still_there(folder)

    def test_a_folder_that_cannot_be_written(self, read_only):
        with pytest.raises(REFUSED, match="denied"):
            self.save_another(read_only)
        with pytest.raises(PermissionError, match="new"):
            self.save_another(read_only / "new")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_killed_sweeps_lose_and_repeat_nothing(tmp_path):
    "The small form of benchmarks/faults.py."
    words = [
        "--kills",
        "5",
        "--runs",
        "2",
        "--rounds",
        "0",
        "--out",
        str(tmp_path / "faults.json"),
    ]
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "faults.py"), *words], check=True
    )
    report = json.loads((tmp_path / "faults.json").read_text())
    assert (
        report["killed"]["kills"] == 5
        and report["killed"]["results"] == 2 * report["killed"]["sweeps"]
    )
    for fault in (
        "results that differ",
        "half files",
        "finished runs lost",
        "executions of a finished run",
    ):
        assert report["killed"][fault] == 0, fault
