"""A meta-batch that two processes share out is the same meta-batch."""

import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from metadropout_nb import long_runs
from metadropout_nb.long_runs import fit
from metadropout_nb.omniglot import glyphs
from metadropout_nb.runs import Run, build_learner
from metadropout_nb.tasks import TaskSampler

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="PyTorch's launcher asks for libuv, which its builds for Windows have not",
)

# Three tasks an update, seven in all: the processes get unequal shares, and one of them
# nothing of the last update.
CASES = {"proto": 3, "original": 1, "eb": 2, "maml": 1}  # learner -> chunk


class CtrlC(TaskSampler):
    "Ctrl-C reaches the first process alone, while the second update is under way."

    def sample(self, n_tasks=1):
        if self.next_task == 3 and torch.distributed.get_rank() == 0:
            signal.raise_signal(signal.SIGINT)
        return super().sample(n_tasks)


def train(
    name: str, checkpoint: Path | None = None, sampler: type = TaskSampler
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    run = Run(name, "meta", size=16, n_way=3)
    learner = build_learner(run).double()
    learner.network.blocks[1].requires_grad_(name != "proto")  # one has a frozen layer
    stream = sampler(
        glyphs(12, n_drawings=8, size=16), n_way=3, k_shot=1, n_query=2, seed=1
    )
    history = fit(
        learner,
        stream,
        n_tasks=7,
        meta_batch=3,
        chunk=CASES[name],
        checkpoint=checkpoint,
    )
    return learner.state_dict() | {
        "losses": torch.tensor(history.losses, dtype=torch.float64)
    }


def main(folder: str) -> None:
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = torch.distributed.get_rank()
    save = long_runs.save_checkpoint

    def save_and_sign(path, *rest):
        save(path, *rest)
        Path(f"{path}.by{rank}").touch()

    long_runs.save_checkpoint = save_and_sign
    for name in CASES:
        trained = train(name, Path(folder) / f"{name}.checkpoint")
        save_file(
            {k: v.contiguous() for k, v in trained.items()}, f"{folder}/{name}-{rank}"
        )
    try:
        train("eb", sampler=CtrlC)
    except KeyboardInterrupt as stopped:
        Path(f"{folder}/stopped-{rank}").write_text(str(stopped))
    torch.distributed.destroy_process_group()
    # A thread that outlives the group may reach for the interpreter while that shuts
    # down, and abort the process.
    threads = {
        path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")
    }
    assert not any("gloo" in name for name in threads), threads


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        __file__,
        folder,
    ]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name, trained_by_two):
    alone = train(name)
    for rank in range(2):
        together = load_file(trained_by_two / f"{name}-{rank}")
        assert together.keys() == alone.keys()
        for key, value in alone.items():
            assert (together[key] - value).abs().max() < 1e-10, (rank, key)


def test_the_first_process_alone_writes_the_checkpoint(trained_by_two):
    found = {path.name for path in trained_by_two.glob("*.by*")}
    assert found == {f"{name}.checkpoint.by0" for name in CASES}
    assert not list(trained_by_two.glob("*.tmp"))


def test_ctrl_c_in_one_process_stops_all_after_the_same_update(trained_by_two):
    told = [(trained_by_two / f"stopped-{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1] and "after 6 of 7" in told[0]


if __name__ == "__main__":
    main(sys.argv[1])
