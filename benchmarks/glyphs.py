"""Part F of results/protocol.md, tested on another domain: glyphs.

    METADROPOUT_DATA=... python benchmarks/glyphs.py

Trains learners on Omniglot, all characters or 30, as parts B and A1 do, and tests them
on frozen tasks of glyphs. One result file per run goes to results/glyphs/; the file's
run is how the learner was trained. What is finished is skipped, so that the same
command goes on, in two processes if you like."""

import argparse
import platform
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from metadropout_nb.comparison import FIRST_SEED
from metadropout_nb.runs import (
    Run,
    frozen_tasks,
    processor,
    train_learner,
    write_json,
)
from metadropout_nb.training import evaluate

RESULTS = Path(__file__).parents[1] / "results" / "glyphs"
RUNS = [
    Run(learner, arm, seed, "omniglot", train_classes=characters)
    for characters in (None, 30)
    for seed in range(FIRST_SEED, FIRST_SEED + 5)
    for learner in ("eb", "original")
    for arm in ("none", "separate", "meta")
]


def tested_on_glyphs(run: Run) -> dict:
    "What goes into the result file."
    learner, history = train_learner(run)
    report = evaluate(learner, frozen_tasks(replace(run, data="glyphs")))
    return {
        "run": asdict(run),
        "tested_on": "glyphs",
        "accuracies": report.accuracies.round(6).tolist(),
        "losses": report.losses.round(6).tolist(),
        "training": {
            "losses": np.round(history.losses, 5).tolist(),
            "accuracies": np.round(history.accuracies, 5).tolist(),
        },
        "versions": {
            name: version(name) for name in ("metadropout_nb", "torch", "numpy")
        }
        | {"python": platform.python_version(), "machine": processor("cpu")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    for run in RUNS:
        path = words.out / f"{run.name}.json"
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                if not path.exists():
                    write_json(path, tested_on_glyphs(run))
                    print(run.name, flush=True)
        except Timeout:
            continue  # another process is at it


if __name__ == "__main__":
    main()
