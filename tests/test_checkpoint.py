"""Stopped and resumed, a training ends where it would have, to the last bit."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from metadropout_nb import long_runs
from metadropout_nb.long_runs import fit
from metadropout_nb.maml import MAML
from metadropout_nb.runs import LEARNERS, Run, execute, sweep
from metadropout_nb.tasks import TaskSampler


class PowerCut(TaskSampler):
    "Breaks off before a given task."

    at = 4

    def sample(self, n_tasks=1):
        if self.next_task >= self.at:
            raise KeyboardInterrupt
        return super().sample(n_tasks)


def train(
    characters,
    kind="eb",
    sampler=TaskSampler,
    checkpoint=None,
    frozen=False,
    prepare=lambda learner: None,
    **settings,
):
    torch.manual_seed(0)
    arguments = {"num_classes": 3, "image_size": 20, "dropout": "meta"}
    if kind == "maml":
        arguments |= {"learn_inner_lr": True, "inner_steps": 1}
    learner = LEARNERS[kind](**arguments)
    learner.network.blocks[0].requires_grad_(not frozen)
    prepare(learner)
    stream = sampler(characters, n_way=3, n_query=2)
    settings = {"n_tasks": 7, "meta_batch": 2, "checkpoint_every": 1} | settings
    history = fit(learner, stream, checkpoint=checkpoint, **settings)
    return learner, history


def state_of(learner):
    return learner.state_dict().values()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", LEARNERS)
def test_resumed_is_uninterrupted_bit_for_bit(characters, tmp_path, kind):
    through, history = train(characters, kind)
    file = tmp_path / "half.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(characters, kind, PowerCut, file)
    resumed, history_resumed = train(characters, kind, checkpoint=file)
    assert same(state_of(through), state_of(resumed))
    assert (
        history_resumed.losses == history.losses
        and history_resumed.tasks == history.tasks == [2, 4, 6, 7]
    )
    assert len(list(tmp_path.iterdir())) == 1, "nothing but the checkpoint stays behind"


@pytest.mark.parametrize("kind", ["proto", "maml"])
def test_a_training_with_a_frozen_layer_is_resumed(characters, tmp_path, kind):
    through, history = train(characters, kind, frozen=True)
    file = tmp_path / "half.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(characters, kind, PowerCut, file, frozen=True)
    resumed, history_resumed = train(characters, kind, checkpoint=file, frozen=True)
    assert history_resumed.losses == history.losses
    assert same(state_of(through), state_of(resumed))
    untrained, _ = train(characters, kind, n_tasks=1, lr=1e-30)
    blocks = zip(through.network.blocks, untrained.network.blocks, strict=True)
    kept = [same(a.conv.parameters(), b.conv.parameters()) for a, b in blocks]
    assert kept == [True, False, False, False]
    again, _ = train(characters, kind, PowerCut, checkpoint=file, frozen=True)
    assert same(state_of(again), state_of(through)), "the finished one is read as well"


@pytest.mark.parametrize("frozen", [True, False])
def test_a_checkpoint_with_other_frozen_layers_is_refused(characters, tmp_path, frozen):
    file = tmp_path / "half.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(characters, "proto", PowerCut, file, frozen=frozen)
    with pytest.raises(ValueError, match="of a training with other frozen parameters"):
        train(characters, "proto", checkpoint=file, frozen=not frozen)


def test_a_parameter_that_never_gets_a_gradient(characters, tmp_path, monkeypatch):
    def add_one(learner):
        learner.unused = torch.nn.Parameter(torch.ones(3))

    file = tmp_path / "half.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(characters, "proto", PowerCut, file, prepare=add_one)
    through, _ = train(characters, "proto", prepare=add_one)
    resumed, _ = train(characters, "proto", checkpoint=file, prepare=add_one)
    assert same(state_of(through), state_of(resumed))
    # Nor does it get one where processes add up theirs.
    (through.network.linear.weight.sum() * 2).backward()
    before = {name: p.grad for name, p in through.named_parameters()}
    monkeypatch.setattr(long_runs, "process", lambda: (0, 2))
    monkeypatch.setattr(long_runs, "summed", lambda tensor: tensor)
    long_runs.sum_gradients(through)
    assert through.unused.grad is None is before["unused"]
    assert torch.equal(
        through.network.linear.weight.grad, before["network.linear.weight"]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_is_refused_and_the_same_resumed(characters, tmp_path, dtype):
    to, file = {"prepare": lambda learner: learner.to(dtype)}, tmp_path / "half"
    with pytest.raises(KeyboardInterrupt):
        train(characters, "proto", PowerCut, file, **to)
    with pytest.raises(ValueError, match="other tensors than this learner's"):
        train(characters, "proto", checkpoint=file)
    through, _ = train(characters, "proto", **to)
    resumed, _ = train(characters, "proto", checkpoint=file, **to)
    assert same(state_of(through), state_of(resumed))


def test_a_finished_training_is_not_repeated(characters, tmp_path, monkeypatch):
    file = tmp_path / "done.safetensors"
    learner, history = train(characters, checkpoint=file)
    monkeypatch.setattr(PowerCut, "at", 0)
    again, told = train(characters, sampler=PowerCut, checkpoint=file)
    assert told.losses == history.losses
    assert same(state_of(learner), state_of(again))


def test_chunks_may_change_on_the_way(characters, tmp_path):
    through, history = train(characters, chunk=2)
    file = tmp_path / "half.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(characters, "eb", PowerCut, file, chunk=2)
    resumed, told = train(characters, checkpoint=file, chunk=1)
    assert told.losses == pytest.approx(history.losses, rel=1e-2)


def test_checkpoint_every_is_at_least_one(characters, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every"):
        train(characters, checkpoint=tmp_path / "x", checkpoint_every=0)


@pytest.mark.filterwarnings("ignore:this processor")
@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.1},
        {"meta_batch": 3},
        {"seed": 1},
        {"n_tasks": 6},
        {"clip": 2.0},
        {"schedule": "cosine"},
        {"bfloat16": True},
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(
    characters, tmp_path, settings
):
    file = tmp_path / "other.safetensors"
    train(characters, checkpoint=file)
    with pytest.raises(
        ValueError, match=f"of a training with other {next(iter(settings))}: remove it"
    ):
        train(characters, checkpoint=file, **settings)


def test_a_checkpoint_of_other_drawings_is_refused(characters, tmp_path):
    file = tmp_path / "other.safetensors"
    train(characters, checkpoint=file)
    others = replace(characters, images=255 - characters.images)
    with pytest.raises(ValueError, match="of a training with other sampler: remove it"):
        train(others, checkpoint=file)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused_by_name(characters, tmp_path, content):
    file = tmp_path / "damaged.safetensors"
    if content is None:
        train(characters, checkpoint=file)
        content = file.read_bytes()[:-100]
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match="damaged.safetensors is not a checkpoint of fit"
    ):
        train(characters, checkpoint=file)


def test_a_sweep_that_was_killed_goes_on_and_ends_equal(tmp_path):
    "kill -9 in the middle of a run, twice."
    run = Run(
        "eb", "meta", size=16, tasks=400, test_tasks=3, test_query=2, meta_batch=2
    )
    code = f"from metadropout_nb.runs import *; sweep([{run!r}], {str(tmp_path)!r})"
    checkpoint = tmp_path / f"{run.name}.checkpoint"
    last = -1
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and (
            not checkpoint.exists() or checkpoint.stat().st_mtime_ns == last
        ):
            assert process.poll() is None, (
                "the run ended before it could be killed: make it longer"
            )
            time.sleep(0.01)
        process.kill()
        process.wait()
        last = checkpoint.stat().st_mtime_ns
    assert not list(tmp_path.glob("*.json"))
    found = sweep([run], tmp_path)[0]
    unkilled = execute(run)
    assert found["accuracies"] == unkilled["accuracies"] and not checkpoint.exists()
    assert found["training"] == unkilled["training"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"dropout_rates": [0.1]}, {"dropout_rates": [0.2]}),
        ({"dropout": "meta"}, {"dropout": "none"}),
        ({"whole_channels": False}, {"whole_channels": True}),
        ({"inner_steps": 1}, {"inner_steps": 2}),
        ({"inner_lr": 0.01}, {"inner_lr": 0.02}),
    ],
)
def test_a_checkpoint_of_another_learner_is_refused(
    characters, tmp_path, before, after
):
    "Also where the weights would fit."

    def fit_one(more):
        learner = MAML(**{"num_classes": 3, "image_size": 20, "inner_steps": 1} | more)
        fit(
            learner,
            TaskSampler(characters, n_way=3, n_query=2),
            n_tasks=1,
            meta_batch=1,
            checkpoint=file,
        )

    file = tmp_path / "one.safetensors"
    fit_one(before)
    with pytest.raises(ValueError, match="of a training with other learner: remove it"):
        fit_one(after)


class CtrlC(TaskSampler):
    "Somebody presses Ctrl-C while the second update is under way."

    presses = 1

    def sample(self, n_tasks=1):
        for _ in range(self.presses if self.next_task == 2 else 0):
            signal.raise_signal(signal.SIGINT)
        return super().sample(n_tasks)


def test_ctrl_c_finishes_the_update_and_says_how_to_go_on(characters, tmp_path):
    through, _ = train(characters)
    file = tmp_path / "half.safetensors"
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        KeyboardInterrupt,
        match=r"after 4 of 7 training tasks: the same call goes on from .*half",
    ):
        train(characters, sampler=CtrlC, checkpoint=file, checkpoint_every=100)
    assert signal.getsignal(signal.SIGINT) is handler
    resumed, history = train(characters, checkpoint=file, checkpoint_every=100)
    assert history.tasks == [2, 4, 6, 7]
    assert same(state_of(through), state_of(resumed))
    with pytest.raises(KeyboardInterrupt, match="no checkpoint was asked for"):
        train(characters, sampler=CtrlC)


def test_a_second_ctrl_c_breaks_in_at_once(characters, tmp_path, monkeypatch):
    monkeypatch.setattr(CtrlC, "presses", 2)
    with pytest.raises(KeyboardInterrupt, match="^$"):
        train(
            characters,
            sampler=CtrlC,
            checkpoint=tmp_path / "half.safetensors",
            checkpoint_every=100,
        )
    assert not list(tmp_path.iterdir())
