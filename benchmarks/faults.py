"""What a sweep makes of kill -9, and of another sweep on the same folder.

    python benchmarks/faults.py     # 100 kills, to results/guarantees/: some minutes
    python benchmarks/faults.py --kills 5 --runs 2 --rounds 0 --out faults.json

A sweep of tiny runs is killed at a random moment, looked at, and started again until it
is through; then comes the next sweep. Every other kill strikes when a file is
half-written, a moment that chance would hardly ever meet. At the end all results are
compared with those of a sweep that nobody killed: everything but the seconds, bit for
bit. Then two sweeps work on one folder at once, left alone or with one of them killed.
Needs a system with `fork`: a child starts with torch already imported. The moments are
seeded, but what a moment hits depends on the machine."""

import argparse
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic, sleep

import torch

import metadropout_nb.runs as module
from metadropout_nb.runs import Run, load_split, read_result, sweep, write_json

OUT = Path(__file__).parents[1] / "results" / "guarantees" / "faults.json"
TINY = {
    "size": 16,
    "n_way": 2,
    "n_query": 1,
    "tasks": 32,
    "test_tasks": 3,
    "meta_batch": 2,
    "test_query": 2,
}
RUNS = [
    Run(learner, "meta", seed, **TINY)
    for learner in ("proto", "eb", "original")
    for seed in (0, 1)
]


def start(folder: Path, runs: list[Run], fatal: int = 0) -> int:
    """A sweep in a process of its own.

    It notes beside the folder every run that it begins, and how far that was. With
    `fatal`, say 3, it dies of kill -9 with its third file half-written."""
    child = os.fork()
    if child:
        return child
    code, execute, replace, files = 1, module.execute, os.replace, count(1)

    def noted(run: Run, progress: bool, checkpoint: Path, device: str):
        there = (
            "finished"
            if (folder / f"{run.name}.json").exists()
            else "resumed"
            if checkpoint.exists()
            else "fresh"
        )
        with open(f"{folder}.begun", "a") as file:
            file.write(f"{there} {run.name}\n")
        return execute(run, progress, checkpoint, device)

    def halved(source: Path, target: Path) -> None:
        if next(files) == fatal:
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    module.execute, os.replace = noted, halved
    # Checkpoints every 8 tasks, not 100, so that runs can be tiny.
    module.fit = partial(module.fit, checkpoint_every=8)
    try:
        sweep(runs, folder)
        code = 0
    finally:
        os._exit(code)


def killed(child: int, seconds: float = float("inf")) -> bool:
    """Kill the child after that time, unless it has ended.

    Returns whether it was killed, by us or by itself."""
    deadline = monotonic() + seconds
    pid, status = 0, 0
    while not pid and monotonic() < deadline:
        sleep(0.005)
        pid, status = os.waitpid(child, os.WNOHANG)
    if not pid:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"a sweep failed by itself: status {status}")
    return status == signal.SIGKILL


def begun(folder: Path) -> Counter:
    file = Path(f"{folder}.begun")
    return (
        Counter(line.split()[0] for line in file.read_text().splitlines())
        if file.exists()
        else Counter()
    )


def look(folder: Path) -> tuple[dict[str, dict], int]:
    "The finished results by name, and how many files named like results are not whole."
    found, half = {}, 0
    for path in folder.glob("*.json"):
        try:
            found[path.stem] = read_result(path)
        except ValueError:
            half += 1
    return found, half


def without_seconds(results: dict[str, dict]) -> dict[str, dict]:
    return {
        name: {key: value for key, value in one.items() if key != "seconds"}
        for name, one in results.items()
    }


def compared(folder: Path, wanted: dict[str, dict]) -> dict[str, int]:
    "After the last sweep: results that differ, executions, files that are no result."
    found, half = look(folder)
    told, right = without_seconds(found), without_seconds(wanted)
    return {
        "results": len(found),
        "results that differ": sum(
            told.get(name) != one for name, one in right.items()
        ),
        "half files": half,
        "executions": begun(folder).total(),
        "executions of a finished run": begun(folder)["finished"],
        "other files left": sum(path.suffix != ".json" for path in folder.iterdir()),
    }


def kill_sweeps(
    place: Path,
    runs: list[Run],
    kills: int,
    wanted: dict[str, dict],
    longest: float,
    rng: random.Random,
):
    "Sweep after sweep, until there were so many kills."
    total, done = Counter(), 0
    while done < kills:
        folder = place / f"killed{total['sweeps']}"
        folder.mkdir()
        before: dict[str, dict] = {}
        again = True
        while again:
            aimed, seconds = done % 2 == 1 and done < kills, rng.uniform(0, longest)
            child = start(folder, runs, rng.randint(1, 8) if aimed else 0)
            again = killed(child, float("inf") if aimed or done >= kills else seconds)
            done += again
            total["kills with a half-written file"] += again and aimed
            after, half = look(folder)
            total["half files"] += half
            total["finished runs lost"] += sum(
                after.get(name) != one for name, one in before.items()
            )
            before = after
        total["sweeps"] += 1
        total["runs that went on from a checkpoint"] += begun(folder)["resumed"]
        total.update(compared(folder, wanted))
        print(f"{done} kills: {dict(total)}", flush=True)
    return {"kills": done} | dict(total)


def race(
    place: Path,
    runs: list[Run],
    rounds: int,
    wanted: dict[str, dict],
    longest: float,
    rng: random.Random,
):
    "Two sweeps on one folder: both to the end, or one of them killed on the way."
    found = {}
    for kind in ("left alone", "one killed"):
        total = Counter(sweeps=2 * rounds, runs=rounds * len(runs))
        for i in range(rounds):
            folder = place / f"{kind} {i}"
            folder.mkdir()
            first, second = start(folder, runs), start(folder, runs)
            total["killed"] += killed(
                first, rng.uniform(0, longest) if kind == "one killed" else float("inf")
            )
            killed(second)
            total.update(compared(folder, wanted))
        found[kind] = dict(total)
        print(f"two sweeps, {kind}: {found[kind]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--runs", type=int, default=len(RUNS), help="of a sweep")
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="of two sweeps at once, left alone and with one killed",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=OUT)
    words = parser.parse_args()
    if not hasattr(os, "fork"):
        sys.exit("this needs a system with fork")
    torch.set_num_threads(1)
    load_split("glyphs", TINY["size"])
    runs, rng = RUNS[: words.runs], random.Random(words.seed)
    with tempfile.TemporaryDirectory() as folder:
        place, begin = Path(folder), monotonic()
        killed(start(place / "whole", runs))
        wanted, _ = look(place / "whole")
        a_run = (monotonic() - begin) / len(runs)
        report = {
            "torch": torch.__version__,
            "runs a sweep": len(runs),
            "seed": words.seed,
        }
        report["killed"] = kill_sweeps(
            place, runs, words.kills, wanted, 1.5 * a_run, rng
        )
        report["two sweeps on one folder"] = race(
            place, runs, words.rounds, wanted, len(runs) * a_run / 2, rng
        )
    words.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(words.out, report)


if __name__ == "__main__":
    main()
