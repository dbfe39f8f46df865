"""MAML: gradients against finite differences, first order, masks, and what can go wrong in the inner loop."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metadropout_nb.maml import MAML
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.training import evaluate, fit, task_losses

SIZE = 20


def build(**arguments):
    """A small learner, its weights moved off the initial ones.

    A max pool that changes its choice is a kink of the inner loss, a jump of its gradient, and so a jump of the outer
    loss: a difference taken across it says nothing. Near the initial weights of this seed there is such a place."""
    torch.manual_seed(0)
    learner = MAML(
        **{"num_classes": 3, "image_size": SIZE, "inner_steps": 2, "inner_lr": 0.05}
        | arguments
    ).double()
    with torch.no_grad():
        for p in learner.initial().values():
            p.add_(0.05 * torch.randn(p.shape, dtype=p.dtype))
    return learner


def outer_loss(learner, tasks):
    "Of one batch of tasks, always the same ones."
    with learner.same_task():
        logits = learner(
            tasks.support_x.double(), tasks.support_y, tasks.query_x.double()
        )
    return task_losses(logits, tasks.query_y).sum()


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def put(learner, vector):
    "The parameters, from one long vector."
    parts = vector.split([p.numel() for p in learner.parameters()])
    for p, part in zip(learner.parameters(), parts, strict=True):
        p.copy_(part.view(p.shape))


def gradient(learner, tasks):
    return flat(
        torch.autograd.grad(outer_loss(learner, tasks), list(learner.parameters()))
    )


def finite_differences(learner, tasks, directions, h=1e-5):
    "Central differences of the outer loss along the rows of `directions`."
    start, slopes = flat(learner.parameters()).detach(), []
    with torch.no_grad():
        for direction in directions:
            ends = []
            for sign in (1, -1):
                put(learner, start + sign * h * direction)
                ends.append(outer_loss(learner, tasks))
            slopes.append((ends[0] - ends[1]) / (2 * h))
        put(learner, start)
    return torch.stack(slopes)


@pytest.fixture
def directions():
    def draw(learner):
        generator = torch.Generator().manual_seed(1)
        size = sum(p.numel() for p in learner.parameters())
        drawn = torch.randn(6, size, generator=generator, dtype=torch.float64)
        return drawn / drawn.norm(dim=1, keepdim=True)

    return draw


@pytest.mark.parametrize("learn_inner_lr", [False, True])
@pytest.mark.parametrize("arm", ["none", "meta", "separate"])
def test_outer_gradient_is_that_of_finite_differences(
    tasks, directions, arm, learn_inner_lr
):
    learner = build(dropout=arm, learn_inner_lr=learn_inner_lr)
    along = directions(learner)
    expected = finite_differences(learner, tasks[:2], along)
    found = along @ gradient(learner, tasks[:2])
    assert (found - expected).norm() / expected.norm() < 1e-6


def test_first_order_is_not_that_gradient(tasks, directions):
    learner = build(dropout="none", first_order=True)
    along = directions(learner)
    expected = finite_differences(learner, tasks[:2], along)
    assert (
        along @ gradient(learner, tasks[:2]) - expected
    ).norm() / expected.norm() > 1e-3


def test_masks_resampled_between_passes_break_the_check(tasks, directions):
    "Without holding the task's masks, every evaluation of the outer loss is another function."
    learner = build(dropout="meta")
    along = directions(learner)
    found = along @ gradient(learner, tasks[:2])
    learner.same_task = learner.network.unrecorded  # holds nothing
    expected = finite_differences(learner, tasks[:2], along)
    assert (found - expected).norm() / found.norm() > 1


def test_first_order_is_the_gradient_at_the_adapted_parameters(tasks):
    learner, task = build(dropout="meta", first_order=True), tasks[0]
    learner.network.seed_masks(0)
    found = gradient(learner, tasks[:1])
    with learner.same_task():
        adapted = learner.adapted(task.support_x.double(), task.support_y)
        masks = learner.network.masks(task.support_x.shape, task.query_x.shape)
    adapted = {name: p.detach().requires_grad_() for name, p in adapted.items()}
    masks = {
        name: mask[:1] if mask.dim() == 4 else mask[0] for name, mask in masks.items()
    }
    logits = learner.classify(adapted, masks, task.query_x.double(), query=True)
    expected = flat(
        torch.autograd.grad(
            nn.functional.cross_entropy(logits, task.query_y), list(adapted.values())
        )
    )
    assert (found - expected).abs().max() < 1e-10


def test_no_inner_steps_is_the_plain_network(tasks):
    learner, task = build(dropout="meta", inner_steps=0), tasks[0]
    logits = learner(task.support_x.double(), task.support_y, task.query_x.double())
    with learner.same_task():
        embeddings = functional_call(
            learner.network,
            learner.network.masks(task.support_x.shape, task.query_x.shape),
            (task.query_x.double(), True),
        )
    assert torch.allclose(logits, learner.head(embeddings), atol=1e-12)


def test_the_inner_loop_is_gradient_descent_on_the_support_loss(tasks):
    learner, task = build(dropout="none", inner_steps=3), tasks[0]
    adapted = learner.adapted(task.support_x.double(), task.support_y)
    plain = build(dropout="none").train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        logits = plain.head(plain.network(task.support_x.double()))
        nn.functional.cross_entropy(logits, task.support_y).backward()
        optimizer.step()
    assert all(
        torch.allclose(p, adapted[name], atol=1e-10)
        for name, p in plain.named_parameters()
    )
    assert any(
        (p - adapted[name]).abs().max() > 1e-3 for name, p in learner.initial().items()
    )


def test_adapted_takes_a_batch_and_leaves_the_learner_alone(tasks):
    learner = build(dropout="meta")
    before = flat(learner.parameters()).clone()
    with learner.same_task():
        batched = learner.adapted(tasks.support_x.double(), tasks.support_y)
    learner.network.seed_masks(0)
    for i in range(len(tasks)):
        one = learner.adapted(tasks[i].support_x.double(), tasks[i].support_y)
        assert all(
            torch.allclose(one[name], p[i], atol=1e-10) for name, p in batched.items()
        )
    assert torch.equal(before, flat(learner.parameters()))


def test_running_statistics_are_those_of_the_query_pass(tasks):
    "Inner steps see the same support set again and again: they leave no mark."
    learner = build(dropout="none", inner_steps=0)
    learner(tasks.support_x.double(), tasks.support_y, tasks.query_x.double())
    plain = [norm.running_mean.clone() for norm in learner.network.norms]
    learner = build(dropout="none", inner_steps=2, inner_lr=1e-12)
    learner(tasks.support_x.double(), tasks.support_y, tasks.query_x.double())
    for norm, expected in zip(learner.network.norms, plain, strict=True):
        assert torch.allclose(norm.running_mean, expected, atol=1e-9)


@pytest.mark.parametrize("statistics", ["running", "support", "mixed"])
def test_no_query_sees_another_at_test(tasks, statistics):
    learner, task = build(statistics=statistics).eval(), tasks[0]
    inputs = task.support_x.double(), task.support_y
    together = learner(*inputs, task.query_x.double())
    alone = torch.cat(
        [learner(*inputs, query[None]) for query in task.query_x.double()]
    )
    assert torch.allclose(together, alone, atol=1e-10)
    learner.network.statistics = "transductive"
    assert not torch.allclose(
        learner(*inputs, task.query_x.double()), together, atol=1e-3
    )


def test_inner_learning_rates_are_learned(tasks, characters):
    learner = build(learn_inner_lr=True).float()
    fit(learner, TaskSampler(characters, n_way=3, n_query=2), n_tasks=4, meta_batch=2)
    assert learner.inner_lr.shape == (len(learner.initial()),)
    assert (learner.inner_lr - 0.05).abs().max() > 1e-4
    assert "inner_lr" in learner.state_dict() and "inner_lr" not in build().state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner_steps": -1}, "inner_steps must be a whole number from 0 on, got -1"),
        ({"inner_steps": 1.5}, "inner_steps"),
        ({"inner_lr": 0.0}, "inner_lr must be positive and finite"),
        ({"inner_lr": -0.1}, "inner_lr must be positive and finite"),
        ({"inner_lr": float("nan")}, "inner_lr must be positive and finite"),
        ({"inner_lr": float("inf")}, "inner_lr must be positive and finite"),
        ({"dropout": "sometimes"}, "unknown dropout arm"),
        ({"statistics": "batch"}, "unknown statistics"),
    ],
)
def test_settings_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAML(**arguments)


def test_a_diverging_inner_loop_is_named(tasks):
    learner = build(inner_lr=1e38, inner_steps=3, dropout="none").float()
    with pytest.raises(
        FloatingPointError, match=r"training task 4 is not finite at inner step 1"
    ):
        learner.network.seed_masks(0, next_task=4)
        learner(tasks.support_x, tasks.support_y, tasks.query_x)
    with pytest.raises(
        FloatingPointError, match=r"task 0 of this batch is not finite at inner step 1"
    ):
        learner.eval()(tasks.support_x, tasks.support_y, tasks.query_x)
    with pytest.raises(
        FloatingPointError, match="begins with test task 0.*inner step 1"
    ):
        evaluate(learner, tasks)
