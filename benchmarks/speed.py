"""Tasks per second and peak memory: the course's learners beside their textbook form.

    python benchmarks/speed.py                # all, to results/speed/benchmark.json
    python benchmarks/speed.py --rounds 1 --learners proto --sizes 28
    python benchmarks/speed.py --only memory growth
    python benchmarks/speed.py --device cuda  # to results/speed/cuda.json, in 8 minutes

Each measurement is a process of its own. The sides take turns, and a ratio is the
median over rounds. The textbook loop runs in a bare interpreter, as a user would run
it, and once more with `keep_memory`. Ours run with `keep_memory`, as the `metadropout`
command does, in float32 and in bfloat16. How time and memory of ours grow comes last.

On a GPU there is one process, and ours alone: training and testing, with more and more
tasks in one call."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from time import perf_counter

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))

import reference as textbook

from metadropout_nb.omniglot import Characters, glyphs
from metadropout_nb.runs import LEARNERS, write_json
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.training import Learner, evaluate, fit, keep_memory

OUT = Path(__file__).parents[1] / "results" / "speed"
SIDES = {  # in the order in which they take turns
    "textbook": {"side": "textbook", "keep": False},
    "textbook, memory kept": {"side": "textbook", "keep": True},
    "float32": {"side": "ours", "keep": True},
    "bfloat16": {"side": "ours", "keep": True, "bfloat16": True},
}
GROWTH = {
    "way": (5, 10, 20),
    "shot": (1, 5),
    "meta_batch": (4, 16),
    "chunk": (1, 4, 16),
    "size": (28, 56, 105),
    "inner_steps": (1, 5, 10),
}
CHUNKS = (1, 16, 64, 256)  # tasks in one call, on a GPU


def build(learner: str, size: int, way: int = 5, inner_steps: int = 5) -> Learner:
    torch.manual_seed(0)
    more = {"inner_steps": inner_steps} if learner == "maml" else {}
    return LEARNERS[learner](num_classes=way, image_size=size, dropout="meta", **more)


@lru_cache
def characters_of(size: int) -> Characters:
    return glyphs(20, n_drawings=25, size=size)


def sampler_of(what: str, size: int, way: int = 5, shot: int = 1) -> TaskSampler:
    "Training tasks have 5 query images per class, test tasks 15."
    n_query = 5 if what == "train" else 15
    return TaskSampler(characters_of(size), way, shot, n_query)


def seconds_of(step: Callable[[], object], seconds: float, least: int = 3) -> float:
    "Median time of a step, after one to warm up."
    step()
    times, start = [], perf_counter()
    while len(times) < least or perf_counter() - start < seconds:
        before = perf_counter()
        step()
        times.append(perf_counter() - before)
    return statistics.median(times)


def measure(
    side: str,
    what: str,
    learner: str,
    size: int,
    threads: int,
    seconds: float,
    keep: bool = True,
    bfloat16: bool = False,
    way: int = 5,
    shot: int = 1,
    inner_steps: int = 5,
    meta_batch: int = 4,
    chunk: int | None = None,  # None: the learner's own
) -> dict[str, float]:
    "In this very process: tasks per second, and the peak of the resident set."
    torch.set_num_threads(threads)
    if keep:
        keep_memory()
    ours = build(learner, size, way, inner_steps)
    sampler = sampler_of(what, size, way, shot)
    tasks, words = sampler.sample(meta_batch), {"chunk": chunk, "bfloat16": bfloat16}
    twin = textbook.Reference(ours)
    steps = {
        ("ours", "train"): lambda: fit(ours, sampler, meta_batch, meta_batch, **words),
        ("ours", "test"): lambda: evaluate(ours, tasks, **words),
        ("textbook", "train"): lambda: textbook.train(
            twin, sampler, meta_batch, meta_batch
        ),
        ("textbook", "test"): lambda: textbook.test(twin, tasks),
    }
    speed = meta_batch / seconds_of(steps[side, what], seconds)
    return {"tasks_per_second": speed, "peak_mb": peak_memory()}


def peak_memory() -> float:
    """Largest resident set of this process so far, in MB.

    (Linux's ru_maxrss begins with that of the parent process.)"""
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def in_a_process(**words) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(words)],
        stdout=subprocess.PIPE,
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
    "Floating-point operations of one training task in textbook form, counted by torch."
    twin = textbook.Reference(build(learner, size)).train()
    task = sampler_of("train", size).sample(1)[0]
    with FlopCounterMode(display=False) as counter:
        logits = twin(task.support_x, task.support_y, task.query_x, twin.draw_masks())
        torch.nn.functional.cross_entropy(logits, task.query_y).backward()
    return counter.get_total_flops()


def compare(rounds: int, **words) -> dict[str, dict]:
    "All sides in turn: tasks per second, and ratios to the textbook loop as run."
    rates: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, side in SIDES.items():
            rates[name].append(in_a_process(**words, **side)["tasks_per_second"])
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: [a / b for a, b in zip(rates[name], rates["textbook"], strict=True)]
        for name in list(SIDES)[1:]
    }
    return {
        "tasks_per_second": median,
        "ratio": {name: statistics.median(each) for name, each in ratios.items()},
        "ratios": ratios,
    }


def memory(learners: list[str], sizes: list[int], threads: int) -> list[dict]:
    "Peak memory of a training, both sides as run."
    found = []
    for size in sizes:
        for learner in learners:
            same = {"learner": learner, "size": size, "what": "train"}
            same |= {"threads": threads, "seconds": 0}
            for name in ("textbook", "float32", "bfloat16"):
                peak = in_a_process(**same, **SIDES[name])["peak_mb"]
                one = {"learner": learner, "size": size, "side": name, "peak_mb": peak}
                found.append(one)
                print(one, flush=True)
    return found


def growth(threads: int, seconds: float) -> list[dict]:
    """One number at a time, training at 28 pixels in float32.

    Inner steps with MAML, the others with the Original Meta Network."""
    found = []
    for name, values in GROWTH.items():
        learner = "maml" if name == "inner_steps" else "original"
        for value in values:
            words = {"side": "ours", "what": "train", "learner": learner, "size": 28}
            words |= {"meta_batch": 16 if name == "chunk" else 4, name: value}
            result = in_a_process(**words, threads=threads, seconds=seconds)
            found.append({"what": name, "value": value, "learner": learner} | result)
            print(found[-1], flush=True)
    return found


def on_a_cpu(words: argparse.Namespace) -> None:
    report = json.loads(words.out.read_text()) if words.out.exists() else {}
    report |= {"threads": words.threads, "torch": torch.__version__}
    if "speed" in words.only:
        report |= {"rounds": words.rounds, "comparisons": []}
        report["matmul_flops"] = matmul_rate(words.threads)
        for size in words.sizes:
            for learner in words.learners:
                for what in ("train", "test"):
                    one = {"learner": learner, "size": size, "what": what}
                    same = one | {"threads": words.threads, "seconds": words.seconds}
                    one |= compare(words.rounds, **same)
                    if what == "train":
                        one["flops"] = operations(learner, size)
                    report["comparisons"].append(one)
                    told = {
                        name: f"{ratio:.2f}" for name, ratio in one["ratio"].items()
                    }
                    print(learner, size, what, told, flush=True)
                    write_json(words.out, report)
    if "memory" in words.only:
        report["memory"] = memory(words.learners, words.sizes, words.threads)
    if "growth" in words.only:
        report["growth"] = growth(words.threads, words.seconds)
    write_json(words.out, report)


def tasks_on_device(
    device: torch.device,
    learner: str,
    size: int,
    what: str,
    bfloat16: bool,
    chunk: int,
    seconds: float,
) -> dict[str, float | str | None]:
    "Tasks per second and peak memory; no speed where so many do not go, and why."
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    ours, sampler = build(learner, size).to(device), sampler_of(what, size)
    n = max(chunk, 16)
    tasks, words = sampler.sample(n), {"chunk": chunk, "bfloat16": bfloat16}

    def step() -> None:
        if what == "train":
            fit(ours, sampler, n, n, **words)
        else:
            evaluate(ours, tasks, **words)
        if cuda:
            torch.cuda.synchronize(device)

    speed, why = None, ""
    try:
        speed = n / seconds_of(step, seconds, least=2)
    except RuntimeError as error:  # out of memory, or too many numbers for a kernel
        why = str(error).split(". ")[0][:200]
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else peak_memory()
    return {"tasks_per_second": speed, "peak_mb": peak, "why": why}


def on_a_gpu(words: argparse.Namespace, device: torch.device) -> None:
    "Ends in time: what is left over then is named, and not measured."
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    report = {"device": name, "torch": torch.__version__, "measurements": []}
    end, left = perf_counter() + 60 * words.minutes, []
    cases = [
        {"learner": k, "size": s, "what": w, "bfloat16": b, "chunk": c}
        for s in words.sizes
        for w in ("train", "test")
        for c in words.chunks
        for k in words.learners
        for b in (False, True)
    ]
    for case in cases:
        if perf_counter() > end:
            left.append(case)
            continue
        one = case | tasks_on_device(device, **case, seconds=words.seconds)
        report["measurements"].append(one)
        print(one, flush=True)
        write_json(words.out, report)
    for case in left:
        print("no time for", case, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, known = parser.add_argument, list(LEARNERS)
    add("--measure", type=json.loads, help=argparse.SUPPRESS)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--learners", nargs="+", default=known, choices=known)
    add("--sizes", nargs="+", type=int, default=[28, 105])
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, help="a measurement, at least (3; on a GPU 0.5)")
    add("--threads", type=int, default=2)
    parts = ["speed", "memory", "growth"]
    add("--only", nargs="+", default=parts, choices=parts, help="others stay as stored")
    add("--chunks", nargs="+", type=int, default=CHUNKS, help="on a GPU")
    add("--minutes", type=float, default=7, help="on a GPU: begin nothing after these")
    add("--out", type=Path)
    words = parser.parse_args()
    if words.measure:
        print(json.dumps(measure(**words.measure)))
        return
    if words.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU on this machine")
    if words.seconds is None:
        words.seconds = 3.0 if words.device == "cpu" else 0.5
    name = "benchmark.json" if words.device == "cpu" else "cuda.json"
    words.out = words.out or OUT / name
    words.out.parent.mkdir(parents=True, exist_ok=True)
    if words.device == "cuda":
        on_a_gpu(words, torch.device("cuda"))
    else:
        on_a_cpu(words)


if __name__ == "__main__":
    main()
