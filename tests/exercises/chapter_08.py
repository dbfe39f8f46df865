"""Answers of chapter 08 that look right and are not."""

import copy

import torch


def v_alone(H, alpha, k, v):
    "First-order MAML."
    return v


def one_factor(H, alpha, k, v):
    "One factor, however many steps."
    return v - alpha * H @ v


def k_times_the_step(H, alpha, k, v):
    "Takes k steps for one of k times the length."
    return v - k * alpha * H @ v


def power_of_entries(H, alpha, k, v):
    "Raises every entry to a power, not the matrix."
    return (torch.eye(len(H), dtype=H.dtype) - alpha * H) ** k @ v


def one_too_many(H, alpha, k, v):
    "A factor for the query pass as well."
    factor = torch.eye(len(H), dtype=H.dtype) - alpha * H
    return torch.linalg.matrix_power(factor, k + 1) @ v


def left_by_the_support_set():
    "The statistics of the support set are no query's."
    return {"support"}


def all_with_own():
    "Counts `mixed`, whose own statistics are the support set's."
    return {"transductive", "mixed"}


def all_but_running():
    "Whatever is not from training."
    return {"support", "transductive", "mixed"}


def as_a_string():
    "A name in place of a set."
    return "transductive"


def outer(loss_of, start, task, second=False, sign=-1.0, query=True, sets="sq"):
    "The solution, and what can go wrong with it."
    of = {
        "s": (task.support_x, task.support_y),
        "q": (task.query_x, task.query_y),
    }
    inner = loss_of(start, *of[sets[0]])
    steps = torch.autograd.grad(inner, list(start.values()), create_graph=second)
    adapted = {
        name: p + sign * 0.125 * g
        for (name, p), g in zip(start.items(), steps, strict=True)
    }
    loss = loss_of(adapted, *of[sets[1]], query=query)
    gradients = torch.autograd.grad(loss, list(start.values()))
    return dict(zip(start, gradients, strict=True))


def query_left_out(loss_of, start, task):
    "Leaves out `query=True`: the query pass gets the mask of the inner loop."
    return outer(loss_of, start, task, query=False)


def second_order(loss_of, start, task):
    "The full gradient."
    return outer(loss_of, start, task, second=True)


def uphill(loss_of, start, task):
    "Steps up the inner loss."
    return outer(loss_of, start, task, sign=1.0)


def at_the_start(loss_of, start, task):
    "The gradient of the query loss before the inner step."
    return outer(loss_of, start, task, sign=0.0)


def support_twice(loss_of, start, task):
    "The support loss again, after the step."
    return outer(loss_of, start, task, query=False, sets="ss")


def a_list(loss_of, start, task):
    "Gradients without their names."
    return list(outer(loss_of, start, task).values())


def in_place(learner):
    "Changes the learner that came in."
    head = [name.startswith("head.") for name in learner.initial()]
    learner.inner_lr *= torch.tensor(head)
    return learner


def shallow_copy(learner):
    "A copy that shares its rates with the learner that came in."
    new = copy.copy(learner)
    head = [name.startswith("head.") for name in learner.initial()]
    new.inner_lr *= torch.tensor(head)
    return new


def frozen(learner):
    "`requires_grad_` does not stop the inner loop."
    new = copy.deepcopy(learner)
    new.network.requires_grad_(False)
    return new


def bias_alone(learner):
    "Takes the last tensor for the head."
    new = copy.deepcopy(learner)
    new.inner_lr[:-1] = 0.0
    return new


def all_but_the_head(learner):
    "The wrong way round."
    new = copy.deepcopy(learner)
    head = torch.tensor([name.startswith("head.") for name in learner.initial()])
    new.inner_lr = new.inner_lr * ~head
    return new


def another_rate(learner):
    "Puts ones where the head's rates stood."
    new = copy.deepcopy(learner)
    head = [name.startswith("head.") for name in learner.initial()]
    new.inner_lr = torch.tensor(head).float()
    return new


def three_tasks():
    "Too few."
    return [-0.03, -0.05, 0.01]


def one_task_again():
    "The same task, with the same draws, five times."
    return [-0.036] * 5


def diverged():
    "An inner loop that went to infinity."
    return [-0.03, -0.05, 0.01, float("nan"), -0.02]


def both_losses():
    "Pairs in place of differences."
    return [(0.36, 0.39), (0.41, 0.40), (0.3, 0.33), (0.28, 0.28), (0.5, 0.52)]


WRONG = {
    "08.1": [v_alone, one_factor, k_times_the_step, power_of_entries, one_too_many],
    "08.2": [left_by_the_support_set, all_with_own, all_but_running, as_a_string],
    "08.3": [
        query_left_out,
        second_order,
        uphill,
        at_the_start,
        support_twice,
        a_list,
    ],
    "08.4": [
        in_place,
        shallow_copy,
        frozen,
        bias_alone,
        all_but_the_head,
        another_rate,
    ],
    "08.5": [three_tasks, one_task_again, diverged, both_losses],
}
