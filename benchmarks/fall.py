"""The fall at 105x105, taken apart by tests alone (part D of results/protocol.md).

    METADROPOUT_DATA=... python benchmarks/fall.py --weights FOLDER

Trains the embedding-based learner with its runs of part D, the same at 28x28 for
comparison, and one cure, masks after the pool. One result file per run goes to
results/, weights stay in FOLDER, and one file per learner, with what the tests gave,
goes to results/why/fall/. What is finished is skipped, and the same command goes on.

The tests change what a trained learner meets, and no weight: masks on or off, by
statistics settled on training tasks with or without masks; only their means, only their
variances, one block at a time; the pool's expectation under masks in place of the pool;
embeddings less their mean shift; logits less each class's mean over the task."""

import argparse
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from metadropout_nb.comparison import FIRST_SEED, LARGE
from metadropout_nb.meta_dropout import seed_masks, sites
from metadropout_nb.runs import (
    Run,
    execute,
    frozen_tasks,
    train_learner,
    training_characters,
    write_json,
)
from metadropout_nb.tasks import TaskBatch, TaskSampler
from metadropout_nb.training import Learner

RESULTS = Path(__file__).parents[1] / "results"
SEEDS = range(FIRST_SEED, FIRST_SEED + 3)
RUNS = [
    Run("eb", arm, seed, "omniglot", **settings)
    for settings, arms in (
        (LARGE, ("none", "standard", "meta")),
        ({}, ("none", "standard", "meta")),
        (LARGE | {"place": "after_pool"}, ("meta",)),
    )
    for seed in SEEDS
    for arm in arms
]
CHUNK = 4  # tasks at a time


class ExpectedPool(nn.Module):
    """What a 2x2 max pool behind a mask gives on average (Wu & Gu, 2015).

    The largest of four survives with probability 1 - p; only if it is dropped does the
    second count, and so on."""

    def __init__(self, p: float):
        super().__init__()
        self.register_buffer("weights", p ** torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        windows = x.relu().unfold(-2, 2, 2).unfold(-2, 2, 2).flatten(-2)
        return windows.sort(descending=True).values @ self.weights.to(x)


def masked_by(learner: Learner, on: bool, training: bool) -> Learner:
    """A copy with masks on or off, in train mode or by running statistics.

    A learner trained without dropout gets the masks of `meta`."""
    twin = deepcopy(learner).train(training)
    arm = "meta" if twin.network.dropout == "none" else twin.network.dropout
    for site in sites(twin.network):
        site.dropout, site.force_eval = arm, not on
        site.train()
    seed_masks(twin, 0)
    return twin


def embedded(learner: Learner, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
    "Support and query embeddings, each task under masks of its own if masks are on."
    found = []
    for start in range(0, len(tasks), CHUNK):
        part = tasks[start : start + CHUNK]
        for site in sites(learner.network):
            site.start_tasks(len(part))
        support = learner.embed(part.support_x)
        found.append((support, learner.embed(part.query_x, query=True)))
    support, query = zip(*found, strict=True)
    return torch.cat(support), torch.cat(query)


def settled(
    learner: Learner, tasks: TaskBatch, on: bool
) -> list[tuple[Tensor, Tensor]]:
    "Mean and variance of each block over these tasks, with masks or without."
    twin = masked_by(learner, on, training=True)
    embedded(twin, tasks)
    twin.eval()
    norms = [block.norm for block in twin.network.blocks]
    return [(norm.running_mean, norm.running_var) for norm in norms]


def with_statistics(
    learner: Learner,
    means: list[Tensor],  # of each block
    variances: list[Tensor],
    masks: bool = False,
) -> Learner:
    twin = masked_by(learner, masks, training=False)
    for block, mean, var in zip(twin.network.blocks, means, variances, strict=True):
        block.norm.running_mean.copy_(mean)
        block.norm.running_var.copy_(var)
    return twin


def measured(logits: Tensor, labels: Tensor) -> dict[str, list[float]]:
    "Of each task: the accuracy, and the largest share of its queries one class gets."
    said = logits.argmax(-1)
    favourite = nn.functional.one_hot(said, logits.shape[-1]).double().mean(-2).amax(-1)
    right = (said == labels).double().mean(-1)
    return {
        "accuracy": right.tolist(),
        "favourite": favourite.round(decimals=4).tolist(),
    }


def shift_of(learner: Learner, tasks: TaskBatch) -> tuple[Tensor, dict[str, float]]:
    """By how much embeddings move on average when masks go off, statistics held.

    With its length in standard deviations of the embeddings, and what the positions of
    the last feature map have to do with it: how many times as long their contributions
    to the linear layer are together as they would be in unrelated directions."""
    seen: list[Tensor] = []
    maps, embeddings = [], []
    for on in (True, False):
        twin = masked_by(learner, on, training=False)
        seen.clear()
        hook = twin.network.linear.register_forward_hook(
            lambda layer, inputs, output: seen.append(inputs[0].flatten(0, -2))
        )
        embeddings.append(torch.cat(embedded(twin, tasks), -2).flatten(0, 1))
        hook.remove()
        maps.append(torch.cat(seen).mean(0))
    shift = (embeddings[1] - embeddings[0]).mean(0)
    weight = learner.network.linear.weight
    filters = learner.network.filters
    parts = (weight * (maps[1] - maps[0])).unflatten(1, (filters, -1)).sum(1)
    spread = (embeddings[1] - embeddings[1].mean(0)).square().sum(-1).mean().sqrt()
    return shift, {
        "length": float(shift.norm() / spread),
        "together": float(parts.sum(1).norm() / parts.square().sum().sqrt()),
        "positions": parts.shape[1],
    }


@torch.no_grad()
def taken_apart(learner: Learner, settling: TaskBatch, tasks: TaskBatch) -> dict:
    "All tests of one learner."
    learner = learner.eval()
    masked, clean = (settled(learner, settling, on) for on in (True, False))
    means, variances = (
        {m: [s[i] for s in now] for m, now in (("masked", masked), ("clean", clean))}
        for i in (0, 1)
    )
    conditions = {"as trained": masked_by(learner, False, False)}
    for statistics in ("masked", "clean"):
        for on in (True, False):
            conditions[f"{statistics} statistics, masks {'on' if on else 'off'}"] = (
                with_statistics(learner, means[statistics], variances[statistics], on)
            )
    conditions["clean means only"] = with_statistics(
        learner, means["clean"], variances["masked"]
    )
    conditions["clean variances only"] = with_statistics(
        learner, means["masked"], variances["clean"]
    )
    for i in range(len(masked)):
        mixed = [*masked[:i], clean[i], *masked[i + 1 :]]
        conditions[f"clean statistics of block {i + 1} only"] = with_statistics(
            learner, *map(list, zip(*mixed, strict=True))
        )
    pooled = with_statistics(learner, means["masked"], variances["masked"])
    for block in pooled.network.blocks:
        if not block.after_pool:
            block.pool = ExpectedPool(block.dropout.p)
    conditions["expected pool"] = pooled

    found = {}
    for name, twin in conditions.items():
        support, query = embedded(twin, tasks)
        logits = twin.classify(support, tasks.support_y, query)
        found[name] = measured(logits, tasks.query_y)
    base = with_statistics(learner, means["masked"], variances["masked"])
    shift, about = shift_of(base, settling)
    support, query = embedded(base, tasks)
    logits = base.classify(support, tasks.support_y, query)
    about["bias"] = float(logits.mean(-2).std(-1).mean() / logits.std(-2).mean())
    centred = logits - logits.mean(-2, keepdim=True)
    found["logits centred"] = measured(centred, tasks.query_y)
    moved = base.classify(support - shift, tasks.support_y, query - shift)
    found["shift subtracted"] = measured(moved, tasks.query_y)
    return {"conditions": found, "shift": about}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="where they go")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tests", type=int, default=100, help="test tasks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--rehearse", action="store_true", help="on glyphs, in a minute"
    )
    words = parser.parse_args()
    words.weights.mkdir(parents=True, exist_ok=True)
    folder = words.out / "why" / "fall"
    folder.mkdir(parents=True, exist_ok=True)
    runs = RUNS
    if words.rehearse:
        small = {"data": "glyphs", "size": 32, "tasks": 16, "test_tasks": 8}
        runs = [replace(run, **small) for run in runs if run.seed == SEEDS[0]]
    for run in dict.fromkeys(runs):
        told, result = folder / f"{run.name}.json", words.out / f"{run.name}.json"
        if told.exists():
            continue
        checkpoint = words.weights / f"{run.name}.checkpoint"
        if not result.exists():
            made = execute(run, checkpoint=checkpoint, device=words.device)
            write_json(result, made)
        learner, _ = train_learner(run, checkpoint=checkpoint, device=words.device)
        settling = TaskSampler(training_characters(run), n_query=5, seed=99).sample(100)
        tests = frozen_tasks(replace(run, test_query=5), words.tests)
        both = [tasks.to(words.device) for tasks in (settling, tests)]
        found = taken_apart(learner, *both)
        write_json(told, {"run": asdict(run)} | found)
        print(run.name, flush=True)


if __name__ == "__main__":
    main()
