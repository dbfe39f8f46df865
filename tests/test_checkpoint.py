"""Stopped and resumed, a training ends where it would have, to the last bit."""

import signal
from dataclasses import replace

import pytest
import torch
from conftest import broken_off, going_on

from metadropout_nb import long_runs
from metadropout_nb.long_runs import fit
from metadropout_nb.maml import MAML
from metadropout_nb.runs import LEARNERS, Run, execute, sweep
from metadropout_nb.tasks import TaskSampler


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
    settings = {"n_tasks": 7, "meta_batch": 2, "checkpoint_every": 4} | settings
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
    with broken_off():
        train(characters, kind, checkpoint=file)
    with going_on():
        resumed, history_resumed = train(characters, kind, checkpoint=file)
    assert same(state_of(through), state_of(resumed))
    assert (
        history_resumed.losses == history.losses
        and history_resumed.tasks == history.tasks == [2, 4, 6, 7]
    )
    assert len(list(tmp_path.iterdir())) == 1, "nothing but the checkpoint stays behind"


@pytest.mark.parametrize("kind", ["proto", "maml"])
def test_a_training_with_a_frozen_layer_is_resumed(
    characters, tmp_path, kind, monkeypatch
):
    through, history = train(characters, kind, frozen=True)
    file = tmp_path / "half.safetensors"
    with broken_off():
        train(characters, kind, checkpoint=file, frozen=True)
    with going_on():
        resumed, history_resumed = train(characters, kind, checkpoint=file, frozen=True)
    assert history_resumed.losses == history.losses
    assert same(state_of(through), state_of(resumed))
    untrained, _ = train(characters, kind, n_tasks=1, lr=1e-30)
    blocks = zip(through.network.blocks, untrained.network.blocks, strict=True)
    kept = [same(a.conv.parameters(), b.conv.parameters()) for a, b in blocks]
    assert kept == [True, False, False, False]
    monkeypatch.delattr(TaskSampler, "sample")
    again, _ = train(characters, kind, checkpoint=file, frozen=True)
    assert same(state_of(again), state_of(through)), "the finished one is read as well"


@pytest.mark.parametrize("frozen", [True, False])
def test_a_checkpoint_with_other_frozen_layers_is_refused(characters, tmp_path, frozen):
    file = tmp_path / "half.safetensors"
    with broken_off():
        train(characters, "proto", checkpoint=file, frozen=frozen)
    with pytest.raises(ValueError, match="of a training with other frozen parameters"):
        train(characters, "proto", checkpoint=file, frozen=not frozen)


def test_a_parameter_that_never_gets_a_gradient(characters, tmp_path, monkeypatch):
    def add_one(learner):
        learner.unused = torch.nn.Parameter(torch.ones(3))

    file = tmp_path / "half.safetensors"
    with broken_off():
        train(characters, "proto", checkpoint=file, prepare=add_one)
    through, _ = train(characters, "proto", prepare=add_one)
    with going_on():
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
    with broken_off():
        train(characters, "proto", checkpoint=file, **to)
    with pytest.raises(ValueError, match="other tensors than this learner's"):
        train(characters, "proto", checkpoint=file)
    through, _ = train(characters, "proto", **to)
    with going_on():
        resumed, _ = train(characters, "proto", checkpoint=file, **to)
    assert same(state_of(through), state_of(resumed))


def test_a_finished_training_is_not_repeated(characters, tmp_path, monkeypatch):
    file = tmp_path / "done.safetensors"
    learner, history = train(characters, checkpoint=file)
    monkeypatch.delattr(TaskSampler, "sample")
    again, told = train(characters, checkpoint=file)
    assert told.losses == history.losses
    assert same(state_of(learner), state_of(again))


def test_chunks_may_change_on_the_way(characters, tmp_path):
    through, history = train(characters, chunk=2)
    file = tmp_path / "half.safetensors"
    with broken_off():
        train(characters, checkpoint=file, chunk=2)
    with going_on():
        resumed, told = train(characters, checkpoint=file, chunk=1)
    assert told.losses == pytest.approx(history.losses, rel=1e-2)


def test_checkpoint_every_is_at_least_one(characters, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every"):
        train(characters, checkpoint=tmp_path / "x", checkpoint_every=0)


@pytest.mark.filterwarnings("ignore:this processor")
def test_a_checkpoint_of_other_settings_is_refused_by_name(characters, tmp_path):
    file = tmp_path / "other.safetensors"
    train(characters, checkpoint=file)
    others = {"lr": 0.1, "meta_batch": 3, "seed": 1, "n_tasks": 6, "clip": 2.0}
    others |= {"schedule": "cosine", "bfloat16": True}
    for name, value in others.items():
        told = f"of a training with other {name}: remove it"
        with pytest.raises(ValueError, match=told):
            train(characters, checkpoint=file, **{name: value})


def test_a_checkpoint_of_other_drawings_is_refused(characters, tmp_path):
    file = tmp_path / "other.safetensors"
    train(characters, checkpoint=file)
    others = replace(characters, images=255 - characters.images)
    with pytest.raises(ValueError, match="of a training with other sampler: remove it"):
        train(others, checkpoint=file)


def test_a_sweep_that_was_broken_off_goes_on_and_ends_equal(tmp_path):
    sizes = {"size": 16, "tasks": 216, "test_tasks": 3, "test_query": 2}
    run = Run("eb", "meta", meta_batch=2, **sizes)
    with broken_off():
        sweep([run], tmp_path)
    assert not list(tmp_path.glob("*.json"))
    with going_on():
        (found,) = sweep([run], tmp_path)
    whole = execute(run)
    assert found["accuracies"] == whole["accuracies"]
    assert found["training"] == whole["training"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_checkpoint_of_another_learner_is_refused(characters, tmp_path):
    "Also where the weights would fit."

    def fit_one(**settings):
        settings = {"num_classes": 3, "image_size": 20, "inner_steps": 1} | settings
        sampler = TaskSampler(characters, n_way=3, n_query=2)
        fit(MAML(**settings), sampler, n_tasks=1, meta_batch=1, checkpoint=file)

    file = tmp_path / "one.safetensors"
    fit_one()
    others = {"dropout_rates": [0.2], "dropout": "none", "whole_channels": True}
    others |= {"inner_steps": 2, "inner_lr": 0.02}
    for name, value in others.items():
        told = "of a training with other learner: remove it"
        with pytest.raises(ValueError, match=told):
            fit_one(**{name: value})


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
    with going_on():
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


def test_a_folder_that_is_not_there_is_told_before_the_training(characters, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"), going_on():
        train(characters, checkpoint=tmp_path / "missing" / "x")
