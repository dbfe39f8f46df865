import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from metadropout_nb.tasks import TaskSampler
from metadropout_nb.training import Evaluation, PrototypicalNetwork, evaluate, fit


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


def test_chunks_change_nothing_beyond_rounding(characters):
    "Loss and running statistics of one update; gradients are compared in test_learners."
    outcomes = []
    for chunk in (1, 3, 4):
        model = learner()
        history = fit(model, sampler(characters), n_tasks=4, meta_batch=4, chunk=chunk)
        outcomes.append(
            (history.losses[0], torch.cat([n.running_var for n in model.network.norms]))
        )
    for loss, running in outcomes[1:]:
        assert loss == pytest.approx(outcomes[0][0], rel=1e-5)
        assert torch.allclose(running, outcomes[0][1], rtol=1e-5)


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
    fit(good, sampler(characters), n_tasks=4, meta_batch=4)
    with pytest.raises(FloatingPointError, match="training task 6 "):
        fit(model, sampler(characters), n_tasks=12, meta_batch=4)
    assert torch.equal(weights(model), weights(good)), "those after the first update"


def test_evaluate_leaves_no_trace(characters):
    model = learner()
    model.train()
    before = copy.deepcopy(model.state_dict())
    tasks = sampler(characters).sample(5)
    first, second = evaluate(model, tasks), evaluate(model, tasks, chunk=3)
    assert model.training and all(
        torch.equal(before[k], v) for k, v in model.state_dict().items()
    )
    assert np.array_equal(first.accuracies, second.accuracies)
    assert np.allclose(first.losses, second.losses, atol=1e-5)
    assert all(p.grad is None for p in model.parameters())


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
    assert "80.00%" in repr(report) and "<table>" in report._repr_html_()
    assert len(report.plot().axes) == 1


def test_kept_memory_stays():
    "What the process holds after a tensor of 200 MB is gone."
    code = (
        "from pathlib import Path\nimport torch\nfrom metadropout_nb.training import keep_memory\n"
        "held = lambda: int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "done, before = {call}, held()\ntensor = torch.ones(50_000_000)\ndel tensor\nprint(done, held() - before)"
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


def test_mixed_precision_changes_digits_and_not_the_course_of_things(characters):
    def losses(mixed_precision):
        torch.manual_seed(0)
        learner = PrototypicalNetwork(num_classes=3, image_size=20)
        sampler = TaskSampler(characters, n_way=3, n_query=2)
        return fit(
            learner, sampler, n_tasks=6, meta_batch=2, mixed_precision=mixed_precision
        ).losses

    full, mixed = losses(False), losses(True)
    assert full != mixed and full == losses(False)
    assert max(abs(a - b) for a, b in zip(full, mixed, strict=True)) < 0.3
