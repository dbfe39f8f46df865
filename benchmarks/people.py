"""Recipes for the test that people took: trials, the best trained anew, the tests.

    python benchmarks/people.py --all      # trials that are missing, two at a time
    python benchmarks/people.py --final    # the best of each learner, then the tests
    python benchmarks/people.py --lake     # today's shipped learners on Lake's runs
    python benchmarks/people.py --ship     # the best of each learner, into the package

Each goes on where it stopped: a finished trial is a JSON file in results/people/, an
unfinished one a checkpoint in results/people/runs/, which is not committed. A trial
trains on "validation", which holds out every fifth background alphabet, and is judged
by `validation_runs` of those. Lake's own runs are looked at once per learner; the file
in results/people/lake/ says when, and is never written again.

Trains on a GPU where there is one. Without, each trial takes one core about two hours
(MAML's: up to one); `--speed` measures images per second of one core's own time.

What reaches people's 4.5 % soonest? A Conv-4 at 28x28 stood at 7 to 8 % from half of
its 20,000 tasks on, so more of the same is not on the list. In this order, and why:

1. `base`: 56x56, where strokes no longer run together; filters 32, 64, 128, 128, as
   costly as four times 64; the last map of 3x3 kept as it is (1,152 numbers, not 64);
   60 ways with two queries, so that an image is compared with 60 others, not 20, at the
   price of two passes; half of the tasks from as few alphabets as fill them, as the
   test is; rotations as classes, affine jitter, cosine, averaged weights. All others
   differ from it in one piece.
2. `match`: the map is compared at nine shifts of one cell, and the nearest counts.
   Hands differ in where they put a stroke more than in which strokes they draw.
3. `deep`: two residual convolutions on the small maps.
4. `alphabets`: all tasks within alphabets. The errors that are left are between
   characters of one alphabet, but 964 characters are few to find such pairs in.
5. `plain`: five queries of 20 ways, the papers' kind of task, same images. What the
   ways bring.
6. `large`: 105x105, Omniglot as it is, with a stride of two in the first convolution:
   finer strokes, at about the same number of products per image.
7. `shared` and 8. `standard`: dropout, one mask per task or one per sample, at the
   course's rates. Here trainings are long and characters seen hundreds of times.

The Original and the embedding-based network get the piece that should matter most and
two remedies: their heads have no distance built in and learn it from many negatives
(`base`), from a higher rate (`fast`), or from more tasks within alphabets
(`alphabets`).

MAML stays at 28x28 and five ways, its own test. `rate`: one inner step at a rate of
0.4, as the MAML paper has it (ours: five at 0.01), learned for each tensor and step,
and running statistics for each step (both Antoniou et al., 2019) in place of the
support set's, which differ from the query set's. `steps`: three steps, rates learned
per tensor and step, the loss after every step counts at first. `group`: group norm,
which knows no other image, so nothing differs at test. `both`: group norm and three
steps. `often`, after these: `group`, whose loss was still falling, with meta-batches of
two and twice the rate, so that 50,000 tasks make 25,000 updates, not 6,250.

At test each learner is judged as it is and with nine looks: the mean embedding of nine
copies, shifted, turned and resized a little. MAML with statistics for each step is
judged as published MAML is in place of that: its query set normalised by its own
statistics."""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from joblib import Parallel, delayed
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import metadropout_nb
from metadropout_nb import training
from metadropout_nb.embedding_network import TaskBatchNorm
from metadropout_nb.intervals import t_interval
from metadropout_nb.long_runs import LongRun, interrupt_held
from metadropout_nb.maml import MAML, Parameters
from metadropout_nb.omniglot import Characters, rotate
from metadropout_nb.runs import (
    LEARNERS,
    TEST_SEED,
    Run,
    build_learner,
    exact_float32,
    load_split,
    processor,
    with_ways,
    write_json,
)
from metadropout_nb.tasks import TaskBatch, TaskSampler
from metadropout_nb.trained import (
    DeepNetwork,
    NineLooks,
    best_build,
    load_lake_runs,
    load_papers_split,
    pretrained,
    save_learner,
    validation_runs,
)
from metadropout_nb.training import Learner, PrototypicalNetwork, evaluate, keep_memory

OUT = Path(__file__).parents[1] / "results" / "people"
RATES = (0.05, 0.10, 0.15, 0.0)  # of dropout, after each block
LOOKS = "once", "nine looks"  # that see one query image at a time
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Trial:
    "One recipe. The learner's name and the trial's make the file."

    name: str
    learner: str = "proto"
    data: str = "validation"  # or "omniglot", "papers": what it trains on
    size: int = 56  # pixels a side
    widths: tuple[int, ...] = (32, 64, 128, 128)  # filters of the blocks
    depth: int = 4  # convolutions; those beyond four are residual, on the small maps
    stride: int = 1  # of the first convolution
    norm: str = "task"  # or "step" (statistics per inner step), "group"
    match: int = 0  # cells by which maps may shift when compared
    ways: int = 60
    queries: int = 2
    share: float = 0.5  # of the tasks within few alphabets
    rotations: bool = True
    jitter: bool = True
    tasks: int = 10_000
    meta_batch: int = 1
    lr: float = 1e-3
    bfloat16: bool = True
    average: float = 0.999  # decay of the averaged weights; 0: none
    arm: str = "none"  # of dropout
    inner_lr: float = 0.4  # MAML's, where learning begins
    inner_steps: int = 1
    multi_step: int = 0  # tasks over which the loss of earlier inner steps fades
    seed: int = 0


BASE = Trial("base")
HEADS = replace(BASE, learner="original"), replace(BASE, learner="eb")
FIVE = {"size": 28, "widths": (64,) * 4, "ways": 5, "queries": 5, "learner": "maml"}
FIVE |= {"share": 0.0, "meta_batch": 8, "bfloat16": False, "norm": "step"}
GROUP = {"norm": "group"}
TRIALS = [
    BASE,
    replace(BASE, name="match", match=1),
    replace(BASE, name="deep", depth=6),
    replace(BASE, name="alphabets", share=1.0),
    replace(BASE, name="plain", ways=20, queries=5, tasks=15_000),
    replace(BASE, name="large", size=105, stride=2, tasks=6000),
    replace(BASE, name="shared", arm="meta"),
    replace(BASE, name="standard", arm="standard"),
    *HEADS,
    *(replace(head, name="fast", lr=3e-3) for head in HEADS),
    *(replace(head, name="alphabets", share=1.0) for head in HEADS),
    Trial("rate", **FIVE, tasks=35_000),
    Trial("steps", **FIVE, inner_steps=3, inner_lr=0.1, multi_step=4000, tasks=12_000),
    Trial("group", **FIVE | GROUP, tasks=35_000),
    Trial(
        "both",
        **FIVE | GROUP,
        inner_steps=3,
        inner_lr=0.1,
        multi_step=4000,
        tasks=12_000,
    ),
    Trial("often", **FIVE | GROUP | {"meta_batch": 2}, lr=2e-3, tasks=50_000),
]


class PeopleSampler(TaskSampler):
    """Tasks of all characters, or of as few alphabets as fill them; drawings jittered.

    As in every sampler, task i depends on the seed and on i alone."""

    def __init__(self, characters: Characters, share: float, jitter: bool, **settings):
        super().__init__(characters, **settings)
        self.share, self.jitter = share, jitter
        alphabets: dict[tuple[str, str], list[int]] = {}
        for i, name in enumerate(characters.names):
            alphabet, turn = name.split("/")[0], name.partition("@")[2]
            alphabets.setdefault((alphabet, turn), []).append(i)
        self.alphabets = list(alphabets.values())

    def _draw(self, task: int) -> tuple[np.ndarray, ...]:
        classes, support, query = super()._draw(task)
        rng = np.random.default_rng((self.seed, task, 1))
        if rng.random() < self.share:
            turned = [self.alphabets[i] for i in rng.permutation(len(self.alphabets))]
            near = [c for alphabet in turned for c in rng.permutation(alphabet)]
            classes = np.array(near[: self.n_way])
        return classes, support, query

    def tasks(self, numbers: Iterable[int]) -> TaskBatch:
        numbers = list(numbers)
        plain = super().tasks(numbers)
        if not self.jitter:
            return plain
        keys = [[(self.seed, i, n) for i in numbers] for n in (2, 3)]
        support, query = (
            torch.stack(list(map(jittered, images, of)))
            for images, of in zip((plain.support, plain.query), keys, strict=True)
        )
        return TaskBatch(support, plain.support_y, query, plain.query_y, plain.classes)


def jittered(
    images: Tensor,  # uint8 `[B, H, W]`
    key: tuple[int, ...],
) -> Tensor:
    "Each turned, moved, resized and slanted a little, by itself."
    rng = np.random.default_rng(key)
    turn, slant = np.radians(rng.uniform((-12, -8), (12, 8), (len(images), 2)).T)
    zoom = 1 / rng.uniform(0.85, 1.15, len(images))
    x, y = rng.uniform(-0.16, 0.16, (2, len(images)))  # half a side is 1
    cos, sin, slope = np.cos(turn), np.sin(turn), np.tan(slant)
    rows = [[zoom * cos, zoom * (slope * cos - sin), x]]
    rows += [[zoom * sin, zoom * (slope * sin + cos), y]]
    moves = torch.tensor(np.array(rows), dtype=torch.float32).permute(2, 0, 1)
    floats = images[:, None].float()
    grid = F.affine_grid(moves.to(images.device), floats.shape, align_corners=False)
    return F.grid_sample(floats, grid, align_corners=False)[:, 0].round().byte()


class StepNorm(nn.Module):
    """Batch norm with running statistics for each inner step (Antoniou et al., 2019).

    In training by the batch's own, which it leaves in `seen` for `gather`."""

    own = False  # at test, too
    step = 0
    seen: tuple[Tensor, Tensor] | None = None

    def __init__(self, filters: int, steps: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(filters))
        self.bias = nn.Parameter(torch.zeros(filters))
        self.register_buffer("mean", torch.zeros(steps, filters))
        self.register_buffer("var", torch.ones(steps, filters))

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.own:
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            self.seen = mean, var
        else:
            mean, var = self.mean[self.step], self.var[self.step]
        scale = self.weight * (var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]

    @torch.no_grad()
    def gather(self, step: int, mean: Tensor, var: Tensor) -> None:
        "Moves a step's statistics towards those of tasks, each `[T, filters]`."
        self.mean[step].lerp_(mean.mean(0).to(self.mean), 0.02)
        self.var[step].lerp_(var.mean(0).to(self.var), 0.02)


def norm_of(trial: Trial, filters: int) -> nn.Module:
    if trial.norm == "step":  # the last statistics are the query pass's
        return StepNorm(filters, trial.inner_steps + 1)
    return TaskBatchNorm(filters) if trial.norm == "task" else nn.GroupNorm(8, filters)


def network_of(trial: Trial) -> tuple[nn.Module, int]:
    "The network, and the length of its embeddings."
    if trial.norm == "task" and trial.stride == 1:
        residuals = trial.depth - 4
        deep = DeepNetwork(trial.size, trial.widths, residuals, trial.arm, RATES)
        return deep, deep.embedding_dim
    layers: list[nn.Module] = []
    channels, side = 1, trial.size
    for block, filters in enumerate(trial.widths):
        stride = trial.stride if block == 0 else 1
        layers += [nn.Conv2d(channels, filters, 3, stride, 1), norm_of(trial, filters)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        side, channels = -(-side // stride) // 2, filters
    network = nn.Sequential(*layers, nn.Flatten())
    return network.to(memory_format=torch.channels_last), channels * side**2


class MatchingNetwork(PrototypicalNetwork):
    """A prototypical network that compares maps cell by cell, at the best shift.

    A logit is minus the squared distance of the cells that overlap, their mean."""

    def __init__(self, channels: int, shift: int, **settings: Any):
        super().__init__(**settings)
        self.channels, self.shift = channels, shift

    def classify(self, support: Tensor, support_y: Tensor, query: Tensor) -> Tensor:
        means = training.class_means(support, support_y, self.num_classes)
        side = round((query.shape[-1] / self.channels) ** 0.5)
        maps = [x.unflatten(-1, (self.channels, side, side)) for x in (query, means)]
        moves = range(-self.shift, self.shift + 1)
        found = []
        for dy, dx in ((dy, dx) for dy in moves for dx in moves):
            parts = [
                x[..., max(s * dy, 0) : side + min(s * dy, 0), :][
                    ..., max(s * dx, 0) : side + min(s * dx, 0)
                ].flatten(-3)
                for s, x in zip((1, -1), maps, strict=True)
            ]
            cells = parts[0].shape[-1] / self.channels
            lengths = [x.square().sum(-1) for x in parts]
            products = parts[0] @ parts[1].mT
            apart = lengths[0][..., None] + lengths[1][..., None, :] - 2 * products
            found.append(-apart / cells)
        return torch.stack(found).amax(0)


class StepMAML(MAML):
    """MAML with an inner rate per tensor and step, and a loss after each step at first.

    The tasks of a batch run through `vmap`."""

    def __init__(self, inner_lr: float, inner_steps: int, fade: int, **settings: Any):
        super().__init__(inner_lr=inner_lr, inner_steps=inner_steps, **settings)
        rates = torch.full((inner_steps, len(self.initial())), inner_lr)
        del self.inner_lr
        self.inner_lr = nn.Parameter(rates)
        self.fade = fade
        self.register_buffer("seen", torch.zeros(()))  # training tasks

    @property
    def step_norms(self) -> list[StepNorm]:
        return [m for m in self.network.modules() if isinstance(m, StepNorm)]

    def pass_at(
        self, step: int, parameters: Parameters, images: Tensor, query: bool = False
    ) -> tuple[Tensor, list[Any]]:
        "Logits, and what the norms saw at this step."
        for norm in self.step_norms:
            norm.step = step
        logits = self.logits(parameters, images, query)
        return logits, [norm.seen for norm in self.step_norms if norm.training]

    def answer(
        self, early: bool, support_x: Tensor, support_y: Tensor, query_x: Tensor
    ) -> tuple[list[Tensor], list[tuple[int, list[Any]]]]:
        "Logits of a task's query set after every step, or after the last alone."

        def loss_of(parameters: Parameters, step: int) -> tuple[Tensor, list[Any]]:
            logits, seen = self.pass_at(step, parameters, support_x)
            return F.cross_entropy(logits, support_y), seen

        parameters, after, found = self.initial(), [], []
        for step, rates in enumerate(self.inner_lr):
            gradients, (_, seen) = grad_and_value(loss_of, has_aux=True)(
                parameters, step
            )
            found.append(seen)
            moves = zip(parameters.items(), rates, strict=True)
            parameters = {name: p - r * gradients[name] for (name, p), r in moves}
            if early or step == self.inner_steps - 1:
                logits, seen = self.pass_at(step + 1, parameters, query_x, True)
                after.append(logits)
        return after, [*found, seen]

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        if support_x.dim() == 4:
            return self(support_x[None], support_y[None], query_x[None])[0]
        training.check_task(support_x, support_y, query_x, self.num_classes)
        self.seen += len(support_x) * self.training
        early = self.training and bool(self.seen < self.fade)
        after, found = vmap(partial(self.answer, early))(support_x, support_y, query_x)
        for step, seen in enumerate(found):
            for norm, statistics in zip(self.step_norms, seen, strict=False):
                norm.gather(step, *statistics)
        for norm in self.step_norms:
            norm.seen = None
        if not early:
            return after[-1]
        # Weights go from equal to the last alone. The further column fills up what the
        # weighted log-probabilities leave, so that cross-entropy is their weighted sum.
        left = float(1 - self.seen / self.fade) / len(after)
        weights = [left] * (len(after) - 1) + [1 - left * (len(after) - 1)]
        summed = sum(w * x.log_softmax(-1) for w, x in zip(weights, after, strict=True))
        rest = (1 - summed.exp().sum(-1, keepdim=True)).clamp(min=1e-6).log()
        return torch.cat([summed, rest], -1)


def with_second_look(learner: Learner, size: int) -> Learner:
    looking = with_ways(learner, learner.num_classes)
    looking.network = NineLooks(looking.network, size)
    return looking


def with_query_statistics(learner: StepMAML) -> StepMAML:
    "As published MAML is tested: the query set is normalised by its own statistics."
    own = with_ways(learner, learner.num_classes)
    for norm in own.step_norms:
        norm.own = True
    return own


def looking(learner: Learner, trial: Trial, look: str) -> Learner:
    "A trained learner as it is at test."
    if look == "query statistics":
        return with_query_statistics(learner)
    return learner if look == "once" else with_second_look(learner, trial.size)


def characters_of(trial: Trial) -> Characters:
    if trial.data == "papers":  # with rotations already
        return load_papers_split(trial.size)[0]
    characters = load_split(trial.data, trial.size)[0]
    return rotate(characters) if trial.rotations else characters


def learner_of(trial: Trial) -> Learner:
    "Untrained. Sets torch's global seed."
    torch.manual_seed(trial.seed)
    network, length = network_of(trial)
    settings = {"num_classes": trial.ways, "embedding_dim": length, "network": network}
    if trial.match:
        return MatchingNetwork(trial.widths[-1], trial.match, **settings)
    if trial.learner == "maml":
        inner = trial.inner_lr, trial.inner_steps, trial.multi_step
        return StepMAML(*inner, **settings)
    return LEARNERS[trial.learner](**settings)


class Averaging(LongRun):
    "Checkpoints, and an average of the weights that travels in them."

    def updated(self, learner: Learner, optimizer: Any, history: Any) -> None:
        if hasattr(learner, "average"):
            learner.average.update_parameters(parts_of(learner))
        super().updated(learner, optimizer, history)


def parts_of(learner: Learner) -> nn.ModuleList:
    "What is averaged: all but the average."
    names = dict(learner.named_children())
    return nn.ModuleList([part for name, part in names.items() if name != "average"])


def train(
    trial: Trial, checkpoint: Path | None = None, every: int = 500
) -> tuple[Learner, training.History]:
    "A trial's learner, trained with one thread; goes on from the checkpoint."
    exact_float32()
    torch.set_num_threads(1)
    keep_memory()
    learner = learner_of(trial).to(DEVICE)
    if trial.average:
        decay = get_ema_multi_avg_fn(trial.average)
        parts = parts_of(learner)
        learner.average = AveragedModel(parts, multi_avg_fn=decay, use_buffers=True)
        learner.average.requires_grad_(False)
    characters = characters_of(trial)
    sampler = PeopleSampler(
        replace(characters, images=characters.images.to(DEVICE)),
        *(trial.share, trial.jitter),
        n_way=trial.ways,
        n_query=trial.queries,
        seed=trial.seed,
    )
    settings = {"meta_batch": trial.meta_batch, "lr": trial.lr, "schedule": "cosine"}
    settings |= {"seed": trial.seed, "bfloat16": trial.bfloat16}
    settings |= {"chunk": trial.meta_batch if DEVICE == "cuda" else None}
    said = json.loads(json.dumps(asdict(trial))) | {"n_tasks": trial.tasks}
    with interrupt_held() as interrupts:
        hooks = Averaging(trial.tasks, checkpoint, every, said, interrupts)
        history = training.fit(learner, sampler, trial.tasks, **settings, hooks=hooks)
    if trial.average:
        parts_of(learner).load_state_dict(learner.average.module.state_dict())
        del learner.average
    return learner.eval(), history


def errors(learner: Learner, tasks: TaskBatch) -> list[float]:
    "Of each task, of as many ways as they have."
    wide = with_ways(learner, tasks.classes.shape[1])
    return (1 - evaluate(wide, tasks).accuracies).round(6).tolist()


def execute(trial: Trial, checkpoint: Path | None = None) -> dict[str, Any]:
    "Train and judge a trial: what goes into its file."
    learner, history = train(trial, checkpoint)
    save_model(learner, left_at(trial, ".safetensors"))
    runs = validation_runs(trial.size)
    test = load_split("validation", trial.size)[1]
    five = TaskSampler(test, 5, 1, 15, seed=TEST_SEED).sample(300)
    looks = ["once", "query statistics" if trial.norm == "step" else "nine looks"]
    found = {}
    for look in looks:
        one = looking(learner, trial, look)
        found[look] = {"five ways": errors(one, five)}
        if trial.learner != "maml":
            found[look]["runs"] = errors(one, runs)
    marks = np.linspace(0, len(history.losses), 51).astype(int)
    return {
        "trial": asdict(trial),
        "errors": found,
        "images": trial.tasks * trial.ways * (1 + trial.queries),
        "minutes": round(history.seconds / 60, 1),
        "weights": sum(p.numel() for p in learner.parameters()),
        "losses": [
            round(float(np.mean(history.losses[a:b])), 4)
            for a, b in zip(marks, marks[1:], strict=False)
            if b > a
        ],
        "versions": {name: version(name) for name in ("metadropout_nb", "torch")},
        "machine": processor(DEVICE),
    }


def path_of(trial: Trial) -> Path:
    data = "" if trial.data == "validation" else f"-{trial.data}"
    return OUT / f"{trial.learner}-{trial.name}{data}.json"


def left_at(trial: Trial, suffix: str) -> Path:
    "Where a file lies that is not committed."
    folder = OUT / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{path_of(trial).stem}{suffix}"


def execute_and_write(trial: Trial) -> str:
    "Unless it is finished, or another process is at it. Returns what there is to tell."
    path = path_of(trial)
    checkpoint = left_at(trial, ".checkpoint")
    lock = left_at(trial, ".lock")
    try:
        with FileLock(lock, timeout=0):
            if not path.exists():
                write_json(path, execute(trial, checkpoint))
                checkpoint.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
    except Timeout:
        return f"{path.stem}: another process is at it"
    except Exception as error:  # the others go on
        return f"{path.stem}: {type(error).__name__}: {error}"
    return f"{path.stem}: {summary(json.loads(path.read_text()))}"


def summary(result: dict[str, Any]) -> str:
    told = [
        f"{look}, {test}: {100 * np.mean(found):.2f} %"
        for look, tests in result["errors"].items()
        for test, found in tests.items()
    ]
    return f"{'; '.join(told)}; {result['minutes']} minutes"


def best_of(learner: str, looks: tuple[str, ...] = LOOKS) -> tuple[Trial, str]:
    "The trial with the smallest validation error, and how often to look."
    test = "five ways" if learner == "maml" else "runs"
    found = []
    for path in sorted(OUT.glob(f"{learner}-*.json")):
        result = json.loads(path.read_text())
        trial = Trial(**result["trial"] | {"widths": tuple(result["trial"]["widths"])})
        if trial.data == "validation":
            for look in result["errors"].keys() & {*looks}:
                error = float(np.mean(result["errors"][look][test]))
                found.append((error, look, trial))
    if not found:
        raise FileNotFoundError(f"no finished trial of {learner} in {OUT}: --all first")
    _, look, trial = min(found, key=lambda one: one[:2])
    return trial, look


def final(trial: Trial, look: str, data: str) -> Learner:
    "A recipe, trained on all background characters or on the papers' 1,200."
    trial = replace(trial, data=data)
    weights = left_at(trial, ".safetensors")
    if weights.exists():
        trained = learner_of(trial).to(DEVICE).eval()
        load_model(trained, weights)
    else:
        trained, _ = train(trial, left_at(trial, ".checkpoint"))
        save_model(trained, weights)
    return looking(trained, trial, look)


def look_at_lake(name: str, learner: Learner, size: int, made: dict[str, Any]) -> None:
    "Lake's runs, once: what the learner answers, and when it was asked."
    path = OUT / "lake" / f"{name}.json"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    runs, wide = load_lake_runs(size=size), with_ways(learner, 20).eval().cpu()
    with torch.no_grad():
        logits = wide(runs.support_x, runs.support_y, runs.query_x)
    answers = logits.argmax(-1)
    wrong = (answers != runs.query_y).double().mean(1)
    content = {
        "learner": name,
        "made": made,
        "looked": str(datetime.now(timezone.utc).date()),
    }
    content |= {"errors": wrong.tolist(), "answers": answers.tolist()}
    write_json(path, content)
    print(f"{name}: {100 * wrong.mean():.2f} % of Lake's runs", flush=True)


def lake_today() -> None:
    "What ships today, beside pixels and a network that was never trained."
    for name in ("proto", "original", "eb"):
        learner, run = pretrained(name)
        look_at_lake(name, learner, run.size, asdict(run))
    run = pretrained("proto")[1]
    untrained = build_learner(replace(run, statistics="support"))
    look_at_lake("untrained", untrained, run.size, {"seed": run.seed})
    pixels = PrototypicalNetwork(20, run.size**2, nn.Flatten())
    look_at_lake("pixels", pixels, run.size, {"size": run.size})


def finals(learner: str) -> None:
    "The best recipe of a learner: Lake's runs, the frozen tasks, the papers' protocol."
    tested(*best_of(learner))
    if learner == "maml":
        tested(*best_of(learner, ("query statistics",)))


def tested(trial: Trial, look: str) -> None:
    learner = trial.learner
    trained = final(trial, look, "omniglot")
    if learner != "maml":
        made = asdict(trial) | {"look": look}
        look_at_lake(f"{learner}-{trial.name}", trained, trial.size, made)
    path = OUT / "tests" / f"{learner}-{trial.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(path.read_text())["errors"] if path.exists() else {}
    made = {"trial": asdict(trial), "look": look}
    made |= {"looked": str(datetime.now(timezone.utc).date()), "errors": found}
    if "frozen 5-way" not in found:
        test = load_split("omniglot", trial.size)[1]
        frozen = TaskSampler(test, 5, 1, 15, seed=TEST_SEED).sample(1000)
        found["frozen 5-way"] = errors(trained, frozen)
        write_json(path, made)
    for ways in (5, 20) if learner == "proto" else ():
        if (name := f"papers {ways}-way") not in found:
            test = load_papers_split(trial.size)[1]
            tasks = TaskSampler(test, ways, 1, 15, seed=TEST_SEED).sample(1000)
            found[name] = errors(final(trial, look, "papers"), tasks)
            write_json(path, made)


def ship() -> None:
    "The best learner of each kind at half precision, beside its figures."
    for kind in LEARNERS:
        trial, look = best_of(kind)
        trained, shipped = final(trial, look, "omniglot"), best_build(kind)
        state = trained.state_dict()
        if kind == "maml":  # the same tensors under other names
            tensors = zip(shipped.initial(), trained.initial().values(), strict=True)
            state = dict(tensors) | {"inner_lr": trained.inner_lr[0]}
        shipped.load_state_dict(state)
        run = Run(
            *(kind, trial.arm, trial.seed, "omniglot", trial.size),
            n_query=trial.queries,
            tasks=trial.tasks,
            meta_batch=trial.meta_batch,
            lr=trial.lr,
            train_way=trial.ways,
            rotations=trial.rotations,
            schedule="cosine",
        )
        folder = Path(metadropout_nb.__file__).parent / "weights" / f"best-{kind}"
        save_learner(shipped.half(), run, folder)
        tests = OUT / "tests" / f"{kind}-{trial.name}.json"
        right = 1 - np.array(json.loads(tests.read_text())["errors"]["frozen 5-way"])
        interval = t_interval(right)
        told = f"{right.mean():.2%} +- {interval.half_width:.2%} (95 % interval)"
        card = (
            (folder / "README.md")
            .read_text()
            .replace(
                "- **Made by**",
                f"- **Accuracy** {told} on {len(right):,} frozen test tasks of\n"
                "  characters never trained on, 5-way 1-shot, 15 queries per class.\n"
                "- **Made by**",
            )
        )
        (folder / "README.md").write_text(card)
        said = json.loads((folder / "learner.json").read_text())
        test = {"tasks": len(right), "accuracy": right.mean()}
        write_json(
            folder / "learner.json",
            said | {"test": test | {"ci95": interval.half_width}},
        )


def speed(tasks: int = 25) -> None:
    "Images per second of one core in training: of its own time, whoever else is there."
    for trial in (BASE, *TRIALS[1:3], *TRIALS[4:6], *TRIALS[-5:]):
        spent = []
        for n in (4, 4 + tasks):  # what they share is no training
            began = process_time()
            train(replace(trial, tasks=n))
            spent.append(process_time() - began)
        images = tasks * trial.ways * (1 + trial.queries)
        each = images / (spent[1] - spent[0])
        print(f"{trial.learner}-{trial.name}: {each:.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="all trials")
    parser.add_argument("--only", nargs="+", help="learners, or trials by name")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--final", action="store_true", help="the best, and the tests")
    parser.add_argument("--lake", action="store_true", help="what ships today")
    parser.add_argument("--ship", action="store_true", help="into the package")
    parser.add_argument("--speed", action="store_true", help="images per second")
    words = parser.parse_args()
    chosen = [
        trial
        for trial in TRIALS
        if not words.only or {trial.learner, trial.name} & {*words.only}
    ]
    if words.speed:
        speed()
    if words.ship:
        ship()
    if words.lake:
        lake_today()
    if words.all:
        for size in {trial.size for trial in chosen}:
            load_split("validation", size)  # decode once, not once per process
        work = (delayed(execute_and_write)(trial) for trial in chosen)
        for told in Parallel(words.jobs, return_as="generator_unordered")(work):
            print(time.strftime("%H:%M"), told, flush=True)
    if words.final:
        of = dict.fromkeys(trial.learner for trial in chosen)
        list(Parallel(words.jobs)(delayed(finals)(learner) for learner in of))


if __name__ == "__main__":
    import people  # the processes import what they run by this name

    people.main()
