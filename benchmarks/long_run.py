"""Does a long training grow? 50,000 tiny tasks in one process, watched all the time.

    python benchmarks/long_run.py   # to results/guarantees/: ten minutes, one core
    python benchmarks/long_run.py --tasks 2000 --out long_run.json

The four learners take turns. A turn trains a new learner, writing checkpoints, and
tests it, as a sweep does; after each the resident set, the open file handles and the
threads of the process are counted. Growth is the median of the last fifth of all turns
against that of the second fifth: the first one is the warm-up. Linux only."""

import argparse
import json
import os
import re
import statistics
import tempfile
import threading
from pathlib import Path

import torch

from metadropout_nb.long_runs import fit
from metadropout_nb.runs import LEARNERS, load_split, write_json
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.training import evaluate, keep_memory

OUT = Path(__file__).parents[1] / "results" / "guarantees" / "long_run.json"
A_TURN = 250  # tasks


def turn(number: int, folder: Path) -> None:
    "Train and test a learner of the smallest kind."
    learner = list(LEARNERS.values())[number % len(LEARNERS)](
        num_classes=2, image_size=16, dropout="meta"
    )
    train, test = load_split("glyphs", 16)
    checkpoint = folder / f"{number}.checkpoint"
    fit(
        learner,
        TaskSampler(train, 2, 1, 1, seed=number),
        A_TURN,
        checkpoint,
        meta_batch=10,
        chunk=10,
        seed=number,
    )
    evaluate(learner, TaskSampler(test, 2, 1, 1).sample(10), chunk=10)
    checkpoint.unlink()


def sample() -> dict[str, float]:
    status = Path("/proc/self/status").read_text()
    return {
        "rss_mb": int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def growth(samples: list[dict[str, float]], name: str) -> float:
    "Percent, of the last fifth over the second."
    fifth = max(1, len(samples) // 5)
    early, late = (
        statistics.median(s[name] for s in part)
        for part in (samples[fifth : 2 * fifth], samples[-fifth:])
    )
    return 100 * (late / early - 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--out", type=Path, default=OUT)
    words = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(words.tasks // A_TURN):
            turn(number, Path(folder))
            samples.append({"tasks": (number + 1) * A_TURN} | sample())
            if number % 20 == 0:
                print(samples[-1], flush=True)
    report = {
        "torch": torch.__version__,
        "tasks": words.tasks,
        "tasks_a_turn": A_TURN,
        "learners": list(LEARNERS),
    }
    report["growth_percent"] = {
        name: growth(samples, name) for name in ("rss_mb", "files", "threads")
    }
    print(json.dumps(report))
    words.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(words.out, report | {"samples": samples})


if __name__ == "__main__":
    main()
