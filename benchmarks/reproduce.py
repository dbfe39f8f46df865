"""Run a random handful of the stored results again, and report each difference.

    python benchmarks/reproduce.py                # three results of the study
    python benchmarks/reproduce.py --runs 10 --seed 1

On the same processor and torch there is none, bit for bit. Elsewhere rounding differs,
and training amplifies it: two may differ in accuracy by as much as any run of
results/rounding/, made on two processors, differed. Leaves with 1 where one differs by
more, and names other versions."""

import argparse
import random
import sys
from pathlib import Path

import numpy as np

from metadropout_nb.runs import Run, execute, read_result

RESULTS = Path(__file__).parents[1] / "results"


def difference(stored: dict, again: dict) -> float:
    "In mean accuracy, a fraction; 0 only if every number of the two is the same."
    same = all(
        stored[key] == again[key]
        for key in ("accuracies", "losses", "familiar", "training")
    )
    apart = abs(float(np.mean(stored["accuracies"]) - np.mean(again["accuracies"])))
    return 0.0 if same else max(apart, np.finfo(float).tiny)


def tolerance() -> float:
    "How far the same runs lay apart on another processor, at most."
    pairs = [
        (read_result(path), read_result(RESULTS / path.name))
        for path in sorted((RESULTS / "rounding").glob("*.json"))
    ]
    return max(difference(*pair) for pair in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    words = parser.parse_args()
    paths = sorted(words.results.glob("*.json"))
    if not paths:
        parser.error(f"no results (*.json) in {words.results}")
    worst, allowed = 0.0, tolerance()
    for path in random.Random(words.seed).sample(paths, min(words.runs, len(paths))):
        stored = read_result(path)
        again = execute(Run(**stored["run"]))
        apart = difference(stored, again)
        worst = max(worst, apart)
        told = (
            "the same, bit for bit" if apart == 0 else f"{100 * apart:.2f} points apart"
        )
        others = [
            f"{name} {version}, here {again['versions'].get(name)}"
            for name, version in stored["versions"].items()
            if version != again["versions"].get(name)
        ]
        print(
            f"{path.stem}: {told}" + (f" ({'; '.join(others)})" if others else ""),
            flush=True,
        )
    print(f"largest difference {100 * worst:.2f} points, allowed {100 * allowed:.2f}")
    return int(worst > allowed)


if __name__ == "__main__":
    sys.exit(main())
