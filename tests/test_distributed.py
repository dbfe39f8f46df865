"""A meta-batch shared out over two processes by PyTorch's launcher is the same meta-batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from metadropout_nb.comparison import Run, build_learner
from metadropout_nb.omniglot import glyphs
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.training import fit

# Three tasks an update, seven in all: the processes get unequal shares, and one of them nothing of the last update.
CASES = {"original": 1, "eb": 2, "maml": 1}  # learner -> chunk


def train(name: str, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    run = Run(name, "meta", size=16, n_way=3)
    learner = build_learner(run).double()
    forward = learner.forward
    learner.forward = lambda support, labels, query: forward(support.double(), labels, query.double())
    sampler = TaskSampler(glyphs(12, n_drawings=8, size=16), n_way=3, k_shot=1, n_query=2, seed=1)
    history = fit(learner, sampler, n_tasks=7, meta_batch=3, chunk=CASES[name], checkpoint=checkpoint)
    return learner.state_dict() | {"losses": torch.tensor(history.losses, dtype=torch.float64)}


def main(folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    for name in CASES:
        trained = train(name, Path(folder) / f"{name}.checkpoint")
        save_file({k: v.contiguous() for k, v in trained.items()}, f"{folder}/{name}-{torch.distributed.get_rank()}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name, trained_by_two):
    alone = train(name)
    for rank in range(2):
        together = load_file(trained_by_two / f"{name}-{rank}")
        assert together.keys() == alone.keys()
        for key, value in alone.items():
            assert (together[key] - value).abs().max() < 1e-10, (rank, key)


@pytest.mark.parametrize("name", CASES)
def test_one_process_writes_the_checkpoint(name, trained_by_two):
    assert (trained_by_two / f"{name}.checkpoint").exists()
    assert not list(trained_by_two.glob("*.tmp"))


if __name__ == "__main__":
    main(sys.argv[1])
