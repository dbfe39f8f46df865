"""MAML: its gradient against finite differences, first order, masks, divergence."""

import pytest
import torch
from torch import nn

from metadropout_nb import maml
from metadropout_nb.maml import MAML
from metadropout_nb.meta_dropout import ARMS, seed_masks
from metadropout_nb.task_batch_norm import norms
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.training import evaluate, fit, task_losses

SIZE = 20


def build(**arguments):
    """A small learner, its weights moved off the initial ones.

    A max pool that changes its choice is a kink of the inner loss, a jump of its
    gradient, and so a jump of the outer loss: a difference taken across it says
    nothing. Near the initial weights of this seed there is such a place."""
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
    "Of one batch of tasks, always with the same masks."
    learner.network.next_task = 0
    logits = learner(tasks.support_x.double(), tasks.support_y, tasks.query_x.double())
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


@pytest.fixture(params=[False, True], ids=["loop", "vmap"])
def together(request, monkeypatch):
    monkeypatch.setattr(MAML, "together", property(lambda learner: request.param))


def error(learner, tasks, along):
    "Relative distance of the gradient's slopes from central differences."
    expected = finite_differences(learner, tasks, along)
    found = along @ gradient(learner, tasks)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("together", "arm", "learn_inner_lr"),
    [(False, "none", True), (False, "meta", False)]
    + [(True, "separate", True), (True, "support", False)],
    indirect=["together"],
)
def test_outer_gradient_is_that_of_finite_differences(
    tasks, directions, together, arm, learn_inner_lr
):
    learner = build(dropout=arm, learn_inner_lr=learn_inner_lr)
    assert error(learner, tasks[:2], directions(learner)) < 1e-6


def test_so_it_is_with_a_mask_for_every_pass(tasks, directions):
    learner = build(dropout="standard")
    assert error(learner, tasks[:2], directions(learner)) < 1e-6


def test_a_fused_norm_inside_vmap_breaks_the_check(tasks, directions, monkeypatch):
    monkeypatch.setattr(MAML, "together", property(lambda learner: True))
    monkeypatch.setattr(
        maml, "apart", lambda learner, fused, plain=maml.apart: plain(learner)
    )
    learner = build(dropout="none")
    assert error(learner, tasks[:2], directions(learner)) > 1e-5


def test_first_order_is_not_that_gradient(tasks, directions):
    learner = build(dropout="none", first_order=True)
    assert error(learner, tasks[:2], directions(learner)) > 1e-3


def test_masks_resampled_between_passes_break_the_check(tasks, directions, monkeypatch):
    "With other masks, every evaluation of the outer loss is another function."
    learner = build(dropout="meta")
    along = directions(learner)
    found = along @ gradient(learner, tasks[:2])
    network = type(learner.network)
    stays = property(network.next_task.fget, lambda network, task: None)
    monkeypatch.setattr(network, "next_task", stays)
    expected = finite_differences(learner, tasks[:2], along)
    assert (found - expected).norm() / found.norm() > 1


def test_no_inner_steps_is_the_plain_network(tasks):
    learner, task = build(dropout="meta", inner_steps=0), tasks[0]
    logits = learner(task.support_x.double(), task.support_y, task.query_x.double())
    embeddings = learner.network(task.query_x.double(), True)  # masks are still held
    assert torch.allclose(logits, learner.head(embeddings), atol=1e-12)
    seed_masks(learner, 1)
    other = learner.head(learner.network(task.query_x.double(), True))
    assert not torch.allclose(logits, other, atol=1e-3)


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
    before = flat(learner.state_dict().values()).clone()
    batched = learner.adapted(tasks.support_x.double(), tasks.support_y)
    learner.network.next_task = 0
    for i in range(len(tasks)):
        one = learner.adapted(tasks[i].support_x.double(), tasks[i].support_y)
        assert all(
            torch.allclose(one[name], p[i], atol=1e-10) for name, p in batched.items()
        )
    assert torch.equal(before, flat(learner.eval().state_dict().values()))


@pytest.mark.usefixtures("together")
def test_running_statistics_are_those_of_the_query_pass(tasks):
    "Inner steps see the same support set again and again: they leave no mark."
    found = []
    for steps in (0, 2):
        learner = build(dropout="none", inner_steps=steps, inner_lr=1e-12)
        learner(tasks.support_x.double(), tasks.support_y, tasks.query_x.double())
        assert all(norm.passes == len(tasks) for norm in norms(learner))
        learner.eval()
        found.append(
            [torch.cat([n.running_mean, n.running_var]) for n in norms(learner)]
        )
    for steps, none in zip(*found, strict=True):
        assert torch.allclose(steps, none, atol=1e-9)
        assert (steps[:64].abs() > 1e-4).any(), "they have moved"


@pytest.mark.parametrize(
    "settings",
    [{}, *({"statistics": name} for name in ("running", "support", "mixed"))],
)
def test_no_query_sees_another_at_test(tasks, settings):
    learner, task = build(**settings).eval(), tasks[0]
    inputs = task.support_x.double(), task.support_y
    together = learner(*inputs, task.query_x.double())
    alone = torch.cat(
        [learner(*inputs, query[None]) for query in task.query_x.double()]
    )
    assert torch.allclose(together, alone, atol=1e-10)
    learner.network.statistics = "transductive"
    seen = learner(*inputs, task.query_x.double())
    assert not torch.allclose(seen, together, atol=1e-3)


@pytest.mark.parametrize("arm", ARMS)
def test_the_task_s_masks_are_there_after_a_call_for_whoever_looks(tasks, arm):
    "As plain tensors, which can be drawn and saved: nothing of `grad` clings to them."
    learner, task = build(dropout=arm), tasks[0]
    learner(task.support_x.double(), task.support_y, task.query_x.double())
    site = learner.network.sites[0]
    held = {"meta": 1, "support": 1, "separate": 2}.get(arm, 0)
    assert len([m for m in (site.mask, site.query_mask) if m is not None]) == held
    for mask in filter(lambda m: m is not None, (site.mask, site.query_mask)):
        assert mask.numpy().min() == 0 and not mask.requires_grad


def test_inner_learning_rates_are_learned(tasks, characters):
    learner = build(learn_inner_lr=True).float()
    fit(learner, TaskSampler(characters, n_way=3, n_query=2), n_tasks=4, meta_batch=2)
    assert learner.inner_lr.shape == (len(learner.initial()),)
    assert (learner.inner_lr - 0.05).abs().max() > 1e-4
    assert "inner_lr" in learner.state_dict() and "inner_lr" not in build().state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"inner_steps": -1},
            "inner_steps must be a whole number from 0 on.* got -1 and 0.01",
        ),
        ({"inner_steps": 1.5}, "inner_steps"),
        ({"inner_lr": 0.0}, "inner_lr positive and finite"),
        ({"inner_lr": -0.1}, "inner_lr positive and finite"),
        ({"inner_lr": float("nan")}, "inner_lr positive and finite"),
        ({"inner_lr": float("inf")}, "inner_lr positive and finite"),
        ({"dropout": "sometimes"}, "unknown dropout arm"),
        ({"statistics": "batch"}, "unknown statistics"),
    ],
)
def test_settings_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAML(**arguments)


def test_a_diverging_inner_loop_is_named(tasks, monkeypatch):
    learner = build(inner_lr=1e38, inner_steps=3, dropout="none").float()
    batch = tasks.support_x, tasks.support_y, tasks.query_x
    named = r"inner loss of training task 4 is not finite at inner step 1"
    with pytest.raises(FloatingPointError, match=named):
        seed_masks(learner, 0, next_task=4)
        learner(*batch)
    seed_masks(learner, 0)
    learner.network.eval()  # frozen: no site begins a task
    with pytest.raises(FloatingPointError, match=r"task 0 of this call"):
        learner(*batch)
    with pytest.raises(
        FloatingPointError, match=r"task 0 of this call is not .* step 1"
    ):
        learner.eval()(*batch)
    named = "begins with test task 0.*inner step 1"
    with pytest.raises(FloatingPointError, match=named):
        evaluate(learner, tasks)
    monkeypatch.setattr(MAML, "together", property(lambda learner: True))
    batch[0][2] = torch.nan  # in task 2 alone
    learner.inner_lr.fill_(0.1)
    with pytest.raises(FloatingPointError, match=r"task 2 of this call .* step 0"):
        learner(*batch)


def test_it_takes_weights_where_it_was_built_without_memory(tasks):
    made, batch = build().float(), (tasks.support_x, tasks.support_y, tasks.query_x)
    with torch.device("meta"):
        learner = MAML(3, 0.05, 2, image_size=SIZE)
    learner.load_state_dict(made.state_dict(), assign=True)
    for one in (made, learner):
        one(*batch)  # in train mode, where batch norm gathers
    assert torch.equal(learner.eval()(*batch), made.eval()(*batch))


def test_a_network_that_changed_after_the_build_is_refused(tasks):
    learner = MAML(3, image_size=SIZE)
    learner.network.blocks[1].conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    with pytest.raises(ValueError, match="19 tensors of weights, but 20 inner rates"):
        learner.adapted(tasks[0].support_x, tasks[0].support_y)
