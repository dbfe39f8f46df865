"""Tasks per second, peak memory and share of the machine's arithmetic, ours against the textbook form.

    python benchmarks/speed.py                # everything, to results/speed/benchmark.json: about 20 minutes
    python benchmarks/speed.py --rounds 1 --learners proto --sizes 28
    python benchmarks/speed.py --only memory growth

Each measurement is a process of its own. The two sides take turns, and the ratio is the median over rounds. "as run" is
how a user would run each: the reference in a bare interpreter, ours with `keep_memory`, as the `metadropout` command
does. "same environment" gives the reference `keep_memory` too. How time and memory of our side grow with ways, shots,
image size, inner steps and chunk comes last."""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))

import reference as textbook

from metadropout_nb.comparison import LEARNERS, write_json
from metadropout_nb.omniglot import glyphs
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.training import evaluate, fit, keep_memory

OUT = Path(__file__).parents[1] / "results" / "speed" / "benchmark.json"
DEFAULTS = {
    "way": 5,
    "shot": 1,
    "query": 5,
    "inner_steps": 5,
    "chunk": 1,
    "meta_batch": 4,
}


def build(learner: str, size: int, way: int, inner_steps: int):
    torch.manual_seed(0)
    more = {"inner_steps": inner_steps} if learner == "maml" else {}
    return LEARNERS[learner](num_classes=way, image_size=size, dropout="meta", **more)


def measure(
    side: str,
    what: str,
    learner: str,
    size: int,
    threads: int,
    keep: bool,
    seconds: float,
    **task,
) -> dict:
    "In this very process: tasks per second after a warm-up, and the peak of the resident set."
    torch.set_num_threads(threads)
    if keep:
        keep_memory()
    task = DEFAULTS | task
    ours = build(learner, size, task["way"], task["inner_steps"])
    twin = textbook.Reference(ours)
    characters = glyphs(max(20, task["way"]), n_drawings=25, size=size)
    n_query = task["query"] if what == "train" else 15
    sampler = TaskSampler(characters, task["way"], task["shot"], n_query)
    n = task["meta_batch"]
    tasks = sampler.sample(n)
    steps = {
        ("ours", "train"): lambda: fit(ours, sampler, n, n, chunk=task["chunk"]),
        ("ours", "test"): lambda: evaluate(ours, tasks, chunk=task["chunk"]),
        ("reference", "train"): lambda: textbook.train(twin, sampler, n, n),
        ("reference", "test"): lambda: textbook.test(twin, tasks),
    }
    step = steps[side, what]
    step()
    times, start = [], perf_counter()
    while len(times) < 3 or perf_counter() - start < seconds:
        before = perf_counter()
        step()
        times.append(perf_counter() - before)
    return {"tasks_per_second": n / statistics.median(times), "peak_mb": peak_memory()}


def peak_memory() -> float:
    "Largest resident set of this process so far, in MB. (Linux's ru_maxrss begins with that of the parent process.)"
    status = Path("/proc/self/status").read_text()
    return (
        int(
            next(
                line for line in status.splitlines() if line.startswith("VmHWM")
            ).split()[1]
        )
        / 1024
    )


def in_a_process(**words) -> dict:
    result = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(words)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


def matmul_rate(threads: int, size: int = 2048) -> float:
    "Floating-point operations per second of a large matrix product."
    torch.set_num_threads(threads)
    a, b, times = torch.randn(size, size), torch.randn(size, size), []
    for _ in range(8):
        before = perf_counter()
        a @ b
        times.append(perf_counter() - before)
    return 2 * size**3 / min(times)


def operations(learner: str, size: int) -> float:
    "Floating-point operations of one training task in textbook form, by torch's counter."
    twin = textbook.Reference(build(learner, size, 5, 5)).train()
    task = TaskSampler(glyphs(20, size=size), n_query=5).sample(1)[0]
    with FlopCounterMode(display=False) as counter:
        logits = twin(task.support_x, task.support_y, task.query_x, twin.draw_masks())
        torch.nn.functional.cross_entropy(logits, task.query_y).backward()
    return counter.get_total_flops()


def compare(
    learner: str, size: int, what: str, threads: int, rounds: int, seconds: float
) -> dict:
    "Reference and ours in turn, as run and in the same environment."
    found = {}
    for name, keeps in (("as run", False), ("same environment", True)):
        sides = {"reference": [], "ours": []}
        for _ in range(rounds):
            for side, results in sides.items():
                keep = keeps or side == "ours"
                words = {
                    "side": side,
                    "what": what,
                    "learner": learner,
                    "size": size,
                    "threads": threads,
                }
                results.append(in_a_process(**words, keep=keep, seconds=seconds))
        rates = {
            side: [one["tasks_per_second"] for one in results]
            for side, results in sides.items()
        }
        found[name] = {
            "ratio": statistics.median(
                o / r for o, r in zip(rates["ours"], rates["reference"], strict=True)
            ),
            "ratios": [
                o / r for o, r in zip(rates["ours"], rates["reference"], strict=True)
            ],
            "tasks_per_second": {
                side: statistics.median(values) for side, values in rates.items()
            },
        }
    return found


def memory(learners: list[str], sizes: list[int], threads: int) -> list[dict]:
    "Peak memory of a training, both sides as run."
    found = []
    for size in sizes:
        for learner in learners:
            for side in ("reference", "ours"):
                words = {
                    "side": side,
                    "what": "train",
                    "learner": learner,
                    "size": size,
                    "threads": threads,
                }
                result = in_a_process(**words, keep=side == "ours", seconds=0)
                found.append(
                    {
                        "learner": learner,
                        "size": size,
                        "side": side,
                        "peak_mb": result["peak_mb"],
                    }
                )
                print(found[-1], flush=True)
    return found


GROWTH = {
    "way": (5, 10, 20),
    "shot": (1, 5),
    "meta_batch": (4, 16),
    "chunk": (1, 4, 16),
    "size": (28, 56, 105),
    "inner_steps": (1, 5, 10),
}


def growth(threads: int, seconds: float) -> list[dict]:
    "One number at a time, training at 28 pixels; inner steps with MAML, the others with the weight generator."
    found = []
    for name, values in GROWTH.items():
        learner = "maml" if name == "inner_steps" else "original"
        for value in values:
            words = {
                "side": "ours",
                "what": "train",
                "learner": learner,
                "size": 28,
                "threads": threads,
            }
            words |= {"meta_batch": 16 if name == "chunk" else 4, name: value}
            result = in_a_process(**words, keep=True, seconds=seconds)
            found.append({"what": name, "value": value, "learner": learner} | result)
            print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument(
        "--learners", nargs="+", default=list(LEARNERS), choices=LEARNERS
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[28, 105])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="a measurement, at least"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only",
        nargs="+",
        default=["speed", "memory", "growth"],
        help="the others stay as stored",
    )
    parser.add_argument("--out", type=Path, default=OUT)
    words = parser.parse_args()
    if words.measure:
        print(json.dumps(measure(**words.measure)))
        return
    words.out.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(words.out.read_text()) if words.out.exists() else {}
    report |= {"threads": words.threads, "torch": torch.__version__}
    if "speed" in words.only:
        report |= {"matmul_flops": matmul_rate(words.threads), "comparisons": []}
        for size in words.sizes:
            for learner in words.learners:
                for what in ("train", "test"):
                    found = compare(
                        learner, size, what, words.threads, words.rounds, words.seconds
                    )
                    found |= {"learner": learner, "size": size, "what": what}
                    if what == "train":
                        found["flops"] = operations(learner, size)
                    report["comparisons"].append(found)
                    ratios = {
                        kind: round(found[kind]["ratio"], 2)
                        for kind in ("as run", "same environment")
                    }
                    print(learner, size, what, ratios, flush=True)
                    write_json(words.out, report)
    if "memory" in words.only:
        report["memory"] = memory(words.learners, words.sizes, words.threads)
    if "growth" in words.only:
        report["growth"] = growth(words.threads, words.seconds)
    write_json(words.out, report)


if __name__ == "__main__":
    main()
