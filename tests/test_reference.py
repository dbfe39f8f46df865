"""What made the course's code fast changed no number: it agrees with the textbook form of every learner."""

import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from metadropout_nb.comparison import LEARNERS
from metadropout_nb.training import task_losses

sys.path.insert(0, str(ROOT / "benchmarks"))

from reference import Reference


def twins(kind, arm="meta", **arguments):
    torch.manual_seed(0)
    learner = LEARNERS[kind](
        num_classes=3, image_size=20, dropout=arm, **arguments
    ).double()
    with (
        torch.no_grad()
    ):  # away from the initial weights, where biases are 0 and scales 1
        for p in learner.parameters():
            p.add_(0.05 * torch.randn(p.shape, dtype=p.dtype))
    return learner, Reference(learner)


def masks_of(learner, i):
    "The masks of task i, as the reference takes them."
    return [
        None if site.mask is None else site.mask[i].contiguous()
        for site in learner.network.sites
    ]


@pytest.mark.parametrize("kind", LEARNERS)
def test_losses_and_gradients_are_those_of_the_textbook_form(tasks, kind):
    learner, reference = twins(kind)
    losses = []
    with learner.same_task():
        logits = learner(
            tasks.support_x.double(), tasks.support_y, tasks.query_x.double()
        )
    for i in range(len(tasks)):
        task = tasks[i]
        inputs = task.support_x.double(), task.support_y, task.query_x.double()
        losses.append(
            F.cross_entropy(
                reference.train()(*inputs, masks_of(learner, i)), task.query_y
            )
        )
    expected = torch.stack(losses)
    found = task_losses(logits, tasks.query_y)
    assert (found - expected).abs().max() < 1e-10
    wanted = torch.autograd.grad(expected.mean(), list(reference.parameters_by_block()))
    gradient = torch.autograd.grad(found.mean(), list(learner.parameters()))
    assert (
        max((g - w).abs().max() for g, w in zip(gradient, wanted, strict=True)) < 1e-10
    )
    assert max(w.abs().max() for w in wanted) > 1e-3


@pytest.mark.parametrize("kind", LEARNERS)
def test_test_time_logits_are_those_of_the_textbook_form(tasks, kind):
    "Running statistics; for MAML, as in its reference, each batch's own."
    learner, reference = twins(
        kind, **({"statistics": "transductive"} if kind == "maml" else {})
    )
    learner(
        tasks.support_x.double(), tasks.support_y, tasks.query_x.double()
    )  # moves the running statistics
    reference = Reference(learner.eval()).eval()
    for i in range(len(tasks)):
        task = tasks[i]
        inputs = task.support_x.double(), task.support_y, task.query_x.double()
        assert (learner(*inputs) - reference(*inputs, [None] * 4)).abs().max() < 1e-10
