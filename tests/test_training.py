import copy
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from metadropout_nb.runs import LEARNERS
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.training import (
    Evaluation,
    Hooks,
    PrototypicalNetwork,
    evaluate,
    fit,
)


def learner(**arguments):
    torch.manual_seed(0)
    return PrototypicalNetwork(**{"num_classes": 3, "image_size": 20} | arguments)


def sampler(characters, seed=0):
    return TaskSampler(characters, n_way=3, k_shot=1, n_query=3, seed=seed)


def weights(model):
    return torch.cat(
        [tensor.double().flatten() for tensor in model.state_dict().values()]
    )


def test_it_learns(characters):
    model, tasks = learner(), sampler(characters, seed=9).sample(60)
    before = evaluate(model, tasks).accuracy
    history = fit(model, sampler(characters), n_tasks=120, meta_batch=4)
    assert evaluate(model, tasks).accuracy > before + 0.1
    assert np.mean(history.losses[-5:]) < np.mean(history.losses[:5]) - 0.2
    assert (
        history.tasks[-1] == 120
        and len(history.losses) == len(history.accuracies) == 30
    )


def test_equal_seeds_equal_numbers(characters):
    runs = []
    for seed in (0, 0, 1):
        model = learner()
        fit(model, sampler(characters), n_tasks=8, meta_batch=4, seed=seed)
        runs.append(weights(model))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2]), "the seed of fit is the mask seed"


@pytest.mark.parametrize("kind", LEARNERS)
def test_chunks_change_nothing_beyond_rounding(characters, kind):
    "Weights, running statistics and losses of two updates, with masks; in float64."
    outcomes = []
    for chunk in (1, 3, 4):
        torch.manual_seed(0)
        model = LEARNERS[kind](num_classes=3, image_size=20).double()
        history = fit(model, sampler(characters), n_tasks=8, meta_batch=4, chunk=chunk)
        outcomes.append((history.losses, weights(model)))
    for losses, state in outcomes[1:]:
        assert losses == pytest.approx(outcomes[0][0], rel=1e-9)
        assert (state - outcomes[0][1]).abs().max() < 1e-8


def test_the_running_statistics_move_once_an_update(characters):
    model = learner()
    fit(model, sampler(characters), n_tasks=6, meta_batch=2, chunk=1)
    for block in model.network.blocks:
        assert block.norm.num_batches_tracked == 3 and block.norm.passes == 0


def test_hooks_are_called_where_they_say(characters):
    class Noting(Hooks):
        def __init__(self):
            self.said = []

        def begin(self, learner, optimizer, history):
            self.said.append(("begin", len(history.tasks)))

        def share(self, n_tasks):
            self.said.append(("share", n_tasks))
            return range(n_tasks)

        def summed(self, learner, sums):
            there = all(p.grad is not None for p in learner.parameters())
            self.said.append(("summed", there))
            return sums

        def updated(self, learner, optimizer, history):
            self.said.append(("updated", history.tasks[-1]))

    hooks, plain, model = Noting(), learner(), learner()
    fit(plain, sampler(characters), n_tasks=5, meta_batch=4)
    fit(model, sampler(characters), n_tasks=5, meta_batch=4, hooks=hooks)
    assert hooks.said == [
        ("begin", 0),
        *(("share", 4), ("summed", True), ("updated", 4)),
        *(("share", 1), ("summed", True), ("updated", 5)),
    ]
    assert torch.equal(weights(plain), weights(model))


def test_a_hook_may_test_in_the_middle(characters):
    class Tests(Hooks):
        def updated(self, learner, optimizer, history):
            evaluate(learner, tasks)

    tasks, plain, model = sampler(characters, seed=9).sample(3), learner(), learner()
    fit(plain, sampler(characters), n_tasks=4, meta_batch=2)
    fit(model, sampler(characters), n_tasks=4, meta_batch=2, hooks=Tests())
    assert torch.equal(weights(plain), weights(model))


def test_the_last_meta_batch_may_be_smaller(characters):
    assert fit(learner(), sampler(characters), n_tasks=5, meta_batch=4).tasks == [4, 5]


@pytest.mark.parametrize(
    "bad",
    [
        {"n_tasks": 0},
        {"meta_batch": 0},
        {"lr": 0},
        {"lr": -1e-3},
        {"clip": 0},
        {"chunk": 0},
    ],
)
def test_settings_that_cannot_be(characters, bad):
    model = learner()
    before = weights(model)
    with pytest.raises(ValueError, match="at least 1"):
        fit(model, sampler(characters), **bad)
    assert torch.equal(before, weights(model))


def test_the_cosine_schedule_takes_ever_smaller_steps(characters, monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)),
    )
    fit(
        learner(),
        sampler(characters),
        n_tasks=8,
        meta_batch=2,
        lr=0.1,
        schedule="cosine",
    )
    assert rates == pytest.approx(0.05 * (1 + np.cos(np.pi * np.arange(4) / 4)))
    with pytest.raises(ValueError, match="constant, cosine"):
        fit(learner(), sampler(characters), schedule="linear")


def test_a_loss_that_is_not_finite_names_the_task_and_keeps_the_weights(characters):
    class Breaks(PrototypicalNetwork):
        def forward(self, *inputs):
            logits = super().forward(*inputs)
            return logits * float("nan") if self.network.next_task == 7 else logits

    torch.manual_seed(0)
    model, good = Breaks(3, image_size=20), learner()
    fit(good, sampler(characters), n_tasks=4, meta_batch=4, chunk=1)
    with pytest.raises(FloatingPointError, match="training task 6 "):
        fit(model, sampler(characters), n_tasks=12, meta_batch=4, chunk=1)
    assert torch.equal(weights(model), weights(good)), "those after the first update"
    assert all(p.grad is None for p in model.parameters())
    model.network.next_task = 7
    with pytest.raises(FloatingPointError, match="test task 0 is not finite$"):
        evaluate(model, sampler(characters).sample(2))


def test_gradients_from_before_do_not_count(characters):
    fresh, model = learner(), learner()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for one in (fresh, model):
        fit(one, sampler(characters), n_tasks=2, meta_batch=2)
    assert torch.equal(weights(fresh), weights(model))


def test_evaluate_leaves_no_trace(characters):
    model = learner()
    model.train()
    before, next_task = copy.deepcopy(model.state_dict()), model.network.next_task
    tasks = sampler(characters).sample(5)
    first, second = evaluate(model, tasks), evaluate(model, tasks, chunk=3)
    assert model.training and all(
        torch.equal(before[k], v) for k, v in model.state_dict().items()
    )
    assert np.array_equal(first.accuracies, second.accuracies)
    assert np.allclose(first.losses, second.losses, atol=1e-5)
    assert all(p.grad is None for p in model.parameters())
    assert model.network.next_task == next_task


def test_accuracy_and_loss_of_a_task_are_what_they_say(characters):
    model, tasks = learner(), sampler(characters).sample(2)
    report = evaluate(model, tasks)
    model.eval()
    logits = model(tasks[1].support_x, tasks[1].support_y, tasks[1].query_x)
    right = [
        int(row.argmax()) == int(y)
        for row, y in zip(logits, tasks[1].query_y, strict=True)
    ]
    loss = torch.stack(
        [
            -row.log_softmax(0)[y]
            for row, y in zip(logits, tasks[1].query_y, strict=True)
        ]
    ).mean()
    assert report.accuracies[1] == pytest.approx(np.mean(right))
    assert report.losses[1] == pytest.approx(loss.item(), rel=1e-5)


def test_evaluation_figures():
    accuracies = np.array([0.5, 0.8, 0.9, 1.0, 60 / 75])
    report = Evaluation(accuracies, np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert report.accuracy == pytest.approx(0.8) and report.loss == 3
    assert report.sd == pytest.approx(np.std(accuracies, ddof=1))
    low, high = stats.t.interval(0.95, 4, accuracies.mean(), stats.sem(accuracies))
    assert report.ci95 == pytest.approx((high - low) / 2)
    assert report.share_above(0.8) == pytest.approx(0.4), "greater, not equal"
    assert "80.00%" in repr(report) and "| 80.00%" in report._repr_markdown_()
    assert len(report.plot().axes) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kept_memory_stays():
    "What the process holds after a tensor of 200 MB is gone."
    code = (
        "import os\nfrom pathlib import Path\nimport torch\n"
        "from metadropout_nb.training import keep_memory\n"
        "held = lambda: int(Path('/proc/self/statm').read_text().split()[1])"
        " * os.sysconf('SC_PAGE_SIZE')\n"
        "done, before = {call}, held()\n"
        "tensor = torch.ones(50_000_000)\ndel tensor\nprint(done, held() - before)"
    )
    found = {}
    for call in ("None", "keep_memory()"):
        result = subprocess.run(
            [sys.executable, "-c", code.format(call=call)],
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        found[call] = result.stdout.split()
    if found["keep_memory()"][0] == "False":
        pytest.skip("this C library has no mallopt")
    assert int(found["keep_memory()"][1]) > 150e6 > 50e6 > int(found["None"][1])


def build(kind, **arguments):
    torch.manual_seed(0)
    return kind(**{"num_classes": 3, "image_size": 20} | arguments)


@pytest.mark.filterwarnings("ignore:this processor")
@pytest.mark.parametrize("kind", LEARNERS.values())
def test_bfloat16_changes_digits_and_not_the_course_of_things(characters, kind):
    def losses(bfloat16):
        model = build(kind)
        settings = {"n_tasks": 6, "meta_batch": 2, "bfloat16": bfloat16}
        found = fit(model, sampler(characters), **settings).losses
        tasks = sampler(characters, seed=9).sample(3)
        return [*found, evaluate(model, tasks, bfloat16=bfloat16).loss]

    full, half = losses(False), losses(True)
    assert full != half and full == losses(False)
    assert np.isfinite(half).all()
    apart = [abs(a - b) for a, b in zip(full, half, strict=True)]
    assert apart[0] < 0.05, "the same weights"
    assert max(apart) < 0.2


def test_where_the_processor_lacks_bfloat16_it_says_so(characters, monkeypatch):
    def run():
        settings = {"n_tasks": 1, "meta_batch": 1, "bfloat16": True}
        model = learner()
        fit(model, sampler(characters), **settings)
        evaluate(model, sampler(characters).sample(1), bfloat16=True)

    asked = "_is_avx512_bf16_supported"
    monkeypatch.setattr(torch.cpu, asked, lambda: False)
    with pytest.warns(UserWarning, match="has no bfloat16 arithmetic") as said:
        run()
    assert [warning.filename for warning in said] == [__file__] * 2
    monkeypatch.setattr(torch.cpu, asked, lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()


def test_one_test_task_has_no_interval_and_none_is_refused(characters):
    tasks = sampler(characters).sample(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = evaluate(learner(), tasks[:1])
        said = repr(one) + one._repr_markdown_()
        one.plot()
    assert "nan" not in said and "±" not in said and "1" in one.rows()["test tasks"]
    assert "±" in repr(evaluate(learner(), tasks))
    with pytest.raises(ValueError, match="at least one test task"):
        evaluate(learner(), tasks[:0])
    with pytest.raises(ValueError, match=r"batch\[:1\]"):
        evaluate(learner(), tasks[0])


def test_a_bar_where_standard_error_is_closed(characters, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as after `2>&-`
    fit(learner(), sampler(characters), 2, progress=True)
