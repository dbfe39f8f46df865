"""What every learner promises. A new learner joins by its name in LEARNERS."""

import pytest
import torch

from metadropout_nb.comparison import LEARNERS
from metadropout_nb.maml import MAML
from metadropout_nb.meta_dropout import ARMS
from metadropout_nb.original_meta_network import MetaLearner
from metadropout_nb.training import class_means, task_losses

SIZE = 20


@pytest.fixture(params=LEARNERS)
def kind(request):
    return LEARNERS[request.param]


def build(kind, **arguments):
    torch.manual_seed(0)
    return kind(**{"num_classes": 3, "image_size": SIZE} | arguments)


def outcome(learner, tasks, parts):
    "Logits, gradients and running statistics of one meta-batch, taken in parts."
    learner.zero_grad()
    learner.network.seed_masks(0)
    logits = []
    with learner.network.one_update():
        for part in parts:
            batch = tasks[part]
            logits.append(
                learner(
                    batch.support_x.double(), batch.support_y, batch.query_x.double()
                )
            )
            single = logits[-1].dim() == 2
            if single:
                logits[-1] = logits[-1][None]
            task_losses(
                logits[-1], batch.query_y[None] if single else batch.query_y
            ).sum().backward()
    gradient = torch.cat(
        [p.grad.flatten() for p in learner.parameters() if p.grad is not None]
    )
    running = torch.cat(
        [
            torch.cat([norm.running_mean, norm.running_var])
            for norm in learner.network.norms
        ]
    )
    return torch.cat(logits).detach(), gradient, running.clone()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("arm", ARMS)
def test_a_batch_equals_its_tasks_one_at_a_time_however_chunked(
    kind, arm, training, tasks
):
    results = []
    for parts in (
        [0, 1, 2, 3],
        [slice(0, 4)],
        [slice(0, 1), slice(1, 4)],
        [slice(0, 3), slice(3, 4)],
    ):
        learner = build(kind, dropout=arm).double().train(training)
        results.append(outcome(learner, tasks, parts))
    assert results[0][1].abs().max() > 1e-5, "there is a gradient to compare"
    for other in results[1:]:
        for mine, theirs in zip(other, results[0], strict=True):
            assert (mine - theirs).abs().max() < 1e-10


def test_every_call_in_train_mode_starts_a_new_task(kind, tasks):
    learner, task = build(kind), tasks[0]
    inputs = task.support_x, task.support_y, task.query_x
    assert not torch.equal(learner(*inputs), learner(*inputs))
    with learner.network.same_task():
        held = learner(*inputs)
        assert torch.equal(held, learner(*inputs))
    assert not torch.equal(held, learner(*inputs))


def test_same_task_refuses_another_number_of_tasks(kind, tasks):
    learner = build(kind)
    with learner.network.same_task():
        learner(tasks.support_x, tasks.support_y, tasks.query_x)
        with pytest.raises(ValueError, match=r"holds 4 task\(s\), but 1"):
            learner(tasks[0].support_x, tasks[0].support_y, tasks[0].query_x)


def passes(learner, task):
    "What the first site does in each pass: where it drops something that was not zero, and where it keeps something."
    found = []

    def look(site, inputs, output):
        found.append((((inputs[0] > 0) & (output == 0)).any(0), (output > 0).any(0)))

    handle = learner.network.sites[0].register_forward_hook(look)
    learner(task.support_x, task.support_y, task.query_x)
    handle.remove()
    return found


def clash(one, other):
    return bool(((one[0] & other[1]) | (one[1] & other[0])).any())


@pytest.mark.parametrize(
    ("arm", "support_clashes", "query_clashes"),
    [("meta", False, False), ("separate", False, True), ("standard", True, True)],
)
def test_masks_of_a_task_in_each_arm(kind, tasks, arm, support_clashes, query_clashes):
    learner = build(kind, dropout=arm)
    *support, query = passes(learner, tasks[0])
    assert all(dropped.any() for dropped, _ in (*support, query)), (
        "something is dropped"
    )
    assert all(clash(one, support[0]) is support_clashes for one in support)
    assert clash(query, support[0]) is query_clashes
    assert clash(passes(learner, tasks[1])[0], support[0]), (
        "the next task has masks of its own"
    )


def test_the_arm_support_leaves_the_query_pass_clean(kind, tasks):
    *support, query = passes(build(kind, dropout="support"), tasks[0])
    assert all(dropped.any() for dropped, _ in support) and not query[0].any()
    assert not any(clash(one, support[0]) for one in support)


def test_eval_gives_equal_answers_and_single_and_batched_shapes(kind, tasks):
    learner = build(kind).eval()
    batched = learner(tasks.support_x, tasks.support_y, tasks.query_x)
    assert batched.shape == (4, 9, 3)
    assert torch.equal(
        batched, learner(tasks.support_x, tasks.support_y, tasks.query_x)
    )
    assert learner(tasks[0].support_x, tasks[0].support_y, tasks[0].query_x).shape == (
        9,
        3,
    )


def test_the_origins_call(kind):
    torch.manual_seed(0)
    learner = kind()
    logits = learner(
        torch.rand(5, 1, 105, 105), torch.arange(5), torch.rand(15, 1, 105, 105)
    )
    assert logits.shape == (15, 5) and logits.isfinite().all()


def test_order_of_support_samples_does_not_matter_and_labels_do(kind, tasks):
    learner, task = build(kind).double().eval(), tasks[0]
    support, query = task.support_x.double(), task.query_x.double()
    logits = learner(support, task.support_y, query)
    shuffled = torch.tensor([5, 3, 0, 1, 4, 2])
    assert torch.allclose(
        learner(support[shuffled], task.support_y[shuffled], query), logits, atol=1e-10
    )
    renamed = torch.tensor([2, 0, 1])
    if kind is MAML:  # its classes start from rows of their own
        head = learner.head
        head.weight.data[renamed], head.bias.data[renamed] = (
            head.weight.data.clone(),
            head.bias.data.clone(),
        )
    assert torch.allclose(
        learner(support, renamed[task.support_y], query)[:, renamed], logits, atol=1e-10
    )


def test_equal_seeds_equal_weights_whatever_the_arm(kind):
    weights = [
        torch.cat([p.flatten() for p in build(kind, dropout=arm).parameters()])
        for arm in ARMS
    ]
    assert all(torch.equal(weights[0], other) for other in weights[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, y, q: (s, y.clamp(max=1), q), "must cover 0 to 2"),
        (lambda s, y, q: (s, y + 1, q), "must cover 0 to 2"),
        (lambda s, y, q: (s, -y, q), "must cover 0 to 2"),
        (lambda s, y, q: (s, y.float(), q), "whole numbers"),
        (lambda s, y, q: (s, y[:-1], q), "do not belong together"),
        (lambda s, y, q: (s[0], y[0], q), "expected support and query"),
        (lambda s, y, q: (s, y, q[:3]), "do not belong together"),
        (lambda s, y, q: (s, y, q[..., :-1]), "expected gray images"),
        (lambda s, y, q: (s[..., :-1], y, q), "expected gray images"),
        (lambda s, y, q: ((s * 255).byte(), y, q), "floating point"),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_inputs_that_do_not_fit(kind, tasks, change, message, training):
    learner = build(kind).train(training)
    with pytest.raises(ValueError, match=message):
        learner(*change(tasks.support_x, tasks.support_y, tasks.query_x))


def test_no_classes(kind):
    with pytest.raises(ValueError, match="num_classes"):
        kind(num_classes=0)


def test_class_means():
    vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    assert class_means(vectors, torch.tensor([1, 1, 0]), 2).tolist() == [
        [0.0, 5.0],
        [2.0, 0.0],
    ]


def test_generated_classifier_is_the_formula():
    torch.manual_seed(0)
    head = MetaLearner(embedding_dim=4, hidden_dim=6, num_classes=2)
    support, labels, query = (
        torch.randn(4, 4),
        torch.tensor([1, 0, 1, 0]),
        torch.randn(3, 4),
    )
    W, b = head.generate(support, labels)
    assert W.shape == (4, 2) and b.shape == (2,)
    hidden = torch.stack([torch.tanh(head.U @ h + head.e) for h in support])
    for c, members in ((0, [1, 3]), (1, [0, 2])):
        r = hidden[members].mean(0)
        assert torch.allclose(W[:, c], head.weight_generator(r), atol=1e-6)
        assert torch.allclose(b[c], head.bias_generator(r)[0], atol=1e-6)
    assert torch.allclose(head(support, labels, query), query @ W + b)
