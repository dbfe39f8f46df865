"""What made the code fast changed no number: every learner is its textbook form."""

import pytest
import torch
import torch.nn.functional as F
from reference import Reference

from metadropout_nb.comparison import LEARNERS
from metadropout_nb.embedding_network import ConvBlock
from metadropout_nb.maml import MAML
from metadropout_nb.meta_dropout import ARMS
from metadropout_nb.training import step_statistics, task_losses

RATES = (0.05, 0.10, 0.15, 0.05, 0.20)  # the fifth masks the embedding
SHAPES = [(64, 20, 20), (64, 10, 10), (64, 5, 5), (64, 2, 2), (64, 1, 1)]


def twins(kind, arm="meta", **arguments):
    "A learner and its textbook form, away from the initial weights (biases are 0)."
    torch.manual_seed(0)
    settings = {"num_classes": 3, "image_size": 20, "dropout_rates": RATES}
    learner = LEARNERS[kind](dropout=arm, **settings | arguments).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.05 * torch.randn(p.shape, dtype=p.dtype))
    return learner, Reference(learner)


def drawn(learner, task, query):
    "The masks of a task, as the reference takes them."
    found = []
    for site, shape in zip(learner.network.sites, SHAPES, strict=True):
        site.next_task = task
        site.start_tasks()
        off = site.dropout == "none" or (query and site.dropout == "support")
        samples = 9 if query else 6  # what the arm "standard" has a mask for
        mask = site.draw((samples, *shape), query, dtype=torch.float64)
        found.append(None if off else mask.contiguous())
    return found


def doubles(tasks):
    return tasks.support_x.double(), tasks.support_y, tasks.query_x.double()


def gaps(tasks, learner, reference):
    "Largest differences of losses and gradients. The gradient is not small."
    found = task_losses(learner(*doubles(tasks)), tasks.query_y)
    gradient = torch.autograd.grad(found.mean(), list(learner.parameters()))
    losses = []
    for i in range(len(tasks)):
        masks = drawn(learner, i, query=False), drawn(learner, i, query=True)
        logits = reference.train()(*doubles(tasks[i]), *masks)
        losses.append(F.cross_entropy(logits, tasks[i].query_y))
    expected = torch.stack(losses)
    wanted = torch.autograd.grad(expected.mean(), list(reference.parameters_by_block()))
    assert max(w.abs().max() for w in wanted) > 1e-3
    pairs = zip(gradient, wanted, strict=True)
    return (
        (found - expected).abs().max().item(),
        float(max((g - w).abs().max() for g, w in pairs)),
    )


# With a mask for every pass MAML's inner steps differ, which its textbook form cannot.
CASES = [(k, a) for k in LEARNERS for a in ARMS if (k, a) != ("maml", "standard")]


@pytest.mark.parametrize(("kind", "arm"), CASES)
def test_losses_and_gradients_are_those_of_the_textbook_form(tasks, kind, arm):
    assert max(gaps(tasks, *twins(kind, arm))) < 1e-10


@pytest.mark.parametrize(
    ("arm", "first_order"),
    [*((arm, False) for arm in ARMS if arm != "standard"), ("meta", True)],
)
def test_so_are_those_of_maml_through_vmap(tasks, arm, first_order, monkeypatch):
    monkeypatch.setattr(MAML, "together", property(lambda learner: True))
    assert max(gaps(tasks, *twins("maml", arm, first_order=first_order))) < 1e-10


def test_first_order_is_that_of_the_textbook_form(tasks):
    assert max(gaps(tasks, *twins("maml", first_order=True))) < 1e-10
    _, full = twins("maml")
    assert gaps(tasks, twins("maml", first_order=True)[0], full)[1] > 1e-4


def test_a_variance_that_is_a_little_off_is_noticed(tasks, monkeypatch):
    "The unbiased variance in place of the biased one, in the first block alone."
    plain = ConvBlock.from_patches

    def unbiased(block, images, tasks):
        scale_and_shift = block.norm.scale_and_shift
        n = images[0].numel() * len(images) // tasks
        block.norm.scale_and_shift = lambda m, v: scale_and_shift(m, v * n / (n - 1))
        y = plain(block, images, tasks)
        del block.norm.scale_and_shift
        return y

    monkeypatch.setattr(ConvBlock, "from_patches", unbiased)
    assert min(gaps(tasks, *twins("proto"))) > 1e-8


@pytest.mark.parametrize("kind", LEARNERS)
def test_test_time_logits_are_those_of_the_textbook_form(tasks, kind):
    "Running statistics; for MAML, as in its reference, each batch's own."
    settings = {"statistics": "transductive"} if kind == "maml" else {}
    learner, _ = twins(kind, **settings)
    learner(*doubles(tasks))
    step_statistics(learner)
    reference = Reference(learner.eval()).eval()
    for i in range(len(tasks)):
        expected = reference(*doubles(tasks[i]), [None] * 5)
        assert (learner(*doubles(tasks[i])) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["proto", "eb", "original"])
def test_one_task_moves_the_running_statistics_as_textbook_batch_norm_does(tasks, kind):
    """Two passes, one step: towards their mean, as far as two steps go together.

    So they agree exactly where both passes see the same images."""
    learner, reference = twins(kind, "none")
    support_x, support_y, _ = doubles(tasks[0])
    learner(support_x, support_y, support_x)
    step_statistics(learner)
    reference.train()(support_x, support_y, support_x, [None] * 5)
    pairs = zip(learner.network.blocks, reference.network.norms, strict=True)
    for block, plain in pairs:
        assert (block.norm.running_mean - plain.running_mean).abs().max() < 1e-10
        assert (block.norm.running_var - plain.running_var).abs().max() < 1e-10
        assert (plain.running_mean.abs() > 1e-3).any()
