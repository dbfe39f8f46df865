"""What every learner promises. A new learner joins by its name in LEARNERS."""

import copy
import pickle
from inspect import signature

import pytest
import torch
from torch import nn

from metadropout_nb import maml
from metadropout_nb.comparison import LEARNERS
from metadropout_nb.eb_meta_network import MetaNetwork
from metadropout_nb.embedding_network import TaskBatchNorm
from metadropout_nb.maml import MAML
from metadropout_nb.meta_dropout import ARMS, MetaDropout, seed_masks, sites
from metadropout_nb.original_meta_network import OriginalMetaNetwork
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.training import (
    class_means,
    evaluate,
    fit,
    step_statistics,
    task_losses,
)

SIZE = 20
PARTS = (
    [0, 1, 2, 3],
    [slice(0, 4)],
    [slice(0, 1), slice(1, 4)],
    [slice(0, 3), slice(3, 4)],
)


@pytest.fixture(params=LEARNERS)
def kind(request):
    return LEARNERS[request.param]


def build(kind, **arguments):
    torch.manual_seed(0)
    return kind(**{"num_classes": 3, "image_size": SIZE} | arguments)


def inputs(tasks):
    return tasks.support_x, tasks.support_y, tasks.query_x


def outcome(learner, tasks, parts):
    "Logits, gradients and running statistics of one meta-batch, taken in parts."
    learner.zero_grad()
    seed_masks(learner, 0)
    found = []
    for part in parts:
        batch = tasks[part]
        support_x, support_y, query_x = inputs(batch)
        logits = learner(support_x.double(), support_y, query_x.double())
        logits = logits.view(-1, 9, 3)
        task_losses(logits, batch.query_y.view(-1, 9)).sum().backward()
        found.append(logits.detach())
    gradient = [p.grad.flatten() for p in learner.parameters() if p.grad is not None]
    learner.eval()  # leaving train mode moves the running statistics
    norms = [block.norm for block in learner.network.blocks]
    running = torch.cat([torch.cat([n.running_mean, n.running_var]) for n in norms])
    return torch.cat(found), torch.cat(gradient), running


def gaps(kind, tasks, training=True, **arguments):
    "Largest differences between one task at a time and each other partition."
    results = []
    for parts in PARTS:
        learner = build(kind, **arguments).double().train(training)
        results.append(outcome(learner, tasks, parts))
    assert results[0][1].abs().max() > 1e-5, "there is a gradient to compare"
    if training:
        fresh = build(kind, **arguments).network.blocks[1].norm.running_var
        assert not torch.allclose(results[0][2][-64:].float(), fresh)
    return [
        max(float((mine[i] - results[0][i]).abs().max()) for mine in results[1:])
        for i in range(3)
    ]


@pytest.mark.parametrize(
    ("arm", "training"), [("standard", True), ("separate", True), ("meta", False)]
)
def test_a_batch_equals_its_tasks_one_at_a_time_however_chunked(
    kind, arm, training, tasks
):
    assert max(gaps(kind, tasks, training, dropout=arm)) < 1e-10


@pytest.mark.parametrize(
    ("arm", "first_order", "training"),
    [(arm, False, True) for arm in ARMS if arm != "standard"]
    + [("meta", True, True), ("meta", False, False)],
)
def test_so_does_a_batch_through_vmap(arm, first_order, training, tasks, monkeypatch):
    monkeypatch.setattr(MAML, "together", property(lambda learner: True))
    settings = {"dropout": arm, "first_order": first_order}
    assert max(gaps(MAML, tasks, training, **settings)) < 1e-10


def test_a_batch_through_vmap_stays_in_float32(tasks, monkeypatch):
    "Under autocast, batch norm inside `vmap` fails, as a GPU showed."
    learner = build(MAML, dropout="meta")
    monkeypatch.setattr(MAML, "together", property(lambda learner: True))
    exact = learner(*inputs(tasks))
    learner.network.next_task = 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(learner(*inputs(tasks)), exact)


def test_without_vmap_on_a_cpu_and_in_the_arm_standard():
    assert not build(MAML).together
    learner = build(MAML).to("meta")
    assert learner.together
    learner.network.dropout = "standard"
    assert not learner.together


@pytest.mark.parametrize("name", ["proto", "eb", "original"])
def test_a_norm_over_all_tasks_together_is_noticed(name, tasks, monkeypatch):
    whole = TaskBatchNorm.forward

    def mixed(norm, x):
        return whole(norm, x.flatten(0, -4)).view_as(x)

    monkeypatch.setattr(TaskBatchNorm, "forward", mixed)
    outputs, gradients, running = gaps(LEARNERS[name], tasks, dropout="none")
    assert outputs > 1e-3 and gradients > 1e-5 and running > 1e-5


def test_a_fused_norm_inside_vmap_is_noticed(tasks, monkeypatch):
    "Its logits are right, its second derivatives are not."

    monkeypatch.setattr(MAML, "together", property(lambda learner: True))
    monkeypatch.setattr(
        maml, "apart", lambda learner, fused, plain=maml.apart: plain(learner)
    )
    outputs, gradients, _ = gaps(MAML, tasks, dropout="none", inner_lr=0.1)
    assert outputs < 1e-10 and gradients > 1e-6


def test_every_call_in_train_mode_starts_new_tasks(kind, tasks):
    learner = build(kind)
    one = inputs(tasks[0])
    first, second = learner(*one), learner(*one)
    assert not torch.equal(first, second)
    learner.network.next_task = 0
    assert torch.equal(learner(*one), first), "the same task again, the same masks"
    assert learner.network.next_task == 1
    learner(*inputs(tasks))
    assert learner.network.next_task == 5


def passes(learner, task):
    """What the first site does in each pass.

    Where it drops something that was not zero, and where it keeps something."""
    found = []

    def look(site, given, output):
        dropped = ((given[0] > 0) & (output == 0)).any(0)
        found.append((dropped, (output > 0).any(0)))

    handle = sites(learner.network)[0].register_forward_hook(look)
    learner(*task)
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
    *support, query = passes(learner, inputs(tasks[0]))
    assert all(dropped.any() for dropped, _ in (*support, query)), (
        "something is dropped"
    )
    # In "standard" two samples of a set differ as well, so a set clashes with itself.
    assert all(clash(one, support[0]) is support_clashes for one in support)
    assert clash(query, support[0]) is query_clashes
    assert clash(passes(learner, inputs(tasks[1]))[0], support[0]), (
        "the next task has masks of its own"
    )


def test_the_arm_support_leaves_the_query_pass_clean(kind, tasks):
    *support, query = passes(build(kind, dropout="support"), inputs(tasks[0]))
    assert all(dropped.any() for dropped, _ in support) and not query[0].any()
    assert not any(clash(one, support[0]) for one in support)


def test_eval_gives_equal_answers_and_single_and_batched_shapes(kind, tasks):
    learner = build(kind).eval()
    batched = learner(*inputs(tasks))
    assert batched.shape == (4, 9, 3)
    assert torch.equal(batched, learner(*inputs(tasks)))
    assert learner(*inputs(tasks[0])).shape == (9, 3)


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
    again = learner(support[shuffled], task.support_y[shuffled], query)
    assert torch.allclose(again, logits, atol=1e-10)
    renamed = torch.tensor([2, 0, 1])
    if kind is MAML:  # its classes start from rows of their own
        head = learner.head
        head.weight.data[renamed] = head.weight.data.clone()
        head.bias.data[renamed] = head.bias.data.clone()
    again = learner(support, renamed[task.support_y], query)
    assert torch.allclose(again[:, renamed], logits, atol=1e-10)
    assert not torch.allclose(again, logits, atol=1e-3)


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
        (lambda s, y, q: (s, y, q[..., :-1]), r"expected images \[B, 1, 20, 20\]"),
        (lambda s, y, q: (s[..., :-1], y, q), r"expected images \[B, 1, 20, 20\]"),
        (lambda s, y, q: ((s * 255).byte(), y, q), "floating point"),
    ],
)
@pytest.mark.parametrize("name", ["proto", "maml"])
def test_inputs_that_do_not_fit(name, tasks, change, message):
    learner = build(LEARNERS[name])
    with pytest.raises(ValueError, match=message):
        learner(*change(*inputs(tasks)))


def test_the_defaults_are_those_of_the_write_up():
    for name, kind in LEARNERS.items():
        rates = [site.p for site in kind().network.sites]
        assert rates == [0.05, 0.10, 0.15, 0.05 if name == "original" else 0, 0]
    assert (MetaNetwork.meta_batch, OriginalMetaNetwork.meta_batch) == (8, 16)
    generator = OriginalMetaNetwork().meta_learner.bias_generator
    assert [layer.weight.shape for layer in generator[::2]] == [(64, 128), (1, 64)]
    told = signature(fit).parameters
    assert [told[name].default for name in ("n_tasks", "lr", "clip")] == [2000, 1e-3, 1]


def test_no_classes(kind):
    with pytest.raises(ValueError, match="num_classes"):
        kind(num_classes=0)


@pytest.mark.parametrize(
    ("name", "arm"), [*((name, "separate") for name in LEARNERS), ("maml", "standard")]
)
def test_a_learner_can_be_copied_and_pickled_at_any_time(
    name, arm, characters, tasks, monkeypatch
):
    "Nothing that it holds belongs to a graph, or to a transform of torch.func."
    kind = LEARNERS[name]
    for together in (False, True) if kind is MAML and arm != "standard" else (False,):
        if kind is MAML:
            monkeypatch.setattr(kind, "together", property(lambda _, on=together: on))
        learner = build(kind, dropout=arm)
        fit(learner, TaskSampler(characters, 3, 2, 2), n_tasks=2, chunk=2)
        assert_copies(learner, tasks)
        evaluate(learner, tasks, chunk=2)
        assert_copies(learner, tasks)
        task_losses(learner(*inputs(tasks)), tasks.query_y).mean().backward()
        assert_copies(learner, tasks)


def assert_copies(learner, tasks):
    copies = copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))
    expected = learner(*inputs(tasks))
    for other in copies:
        assert torch.equal(other(*inputs(tasks)), expected)


# --- a network of one's own ---

NORMS = {
    "group": lambda: nn.GroupNorm(4, 16),
    "layer": lambda: nn.GroupNorm(1, 16),
    "task": lambda: TaskBatchNorm(16, "support"),
    "none": nn.Identity,
    "batch": lambda: nn.BatchNorm2d(16),
}
OWN = [("proto", norm) for norm in NORMS]
OWN += [("eb", "none"), ("original", "group"), ("maml", "task")]
DIM = 10


class Mine(nn.Module):
    "`[B, C, H, W]` to `[B, DIM]`, whatever H and W."

    def __init__(self, norm, channels=3, p=0.4):
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, padding=1)
        self.norm = NORMS[norm]()
        self.site = MetaDropout(p)
        self.deep = nn.Sequential(
            nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), MetaDropout(p, site=1)
        )
        self.last = nn.Linear(16, DIM)

    def forward(self, images):
        x = self.site(self.norm(self.stem(images)).relu())
        return self.last(self.deep(x).mean((-1, -2)))


def with_mine(name, norm, **arguments):
    torch.manual_seed(0)
    network = Mine(norm, **arguments)
    return LEARNERS[name](num_classes=3, embedding_dim=DIM, network=network)


def in_colour(tasks):
    generator = torch.Generator().manual_seed(0)
    ink = torch.rand(3, 1, 1, generator=generator)
    return tasks.support_x * ink, tasks.support_y, tasks.query_x * ink


@pytest.mark.parametrize(("name", "norm"), OWN)
def test_any_network_learns_on_colour_images(name, norm, tasks):
    learner, task = with_mine(name, norm), in_colour(tasks)
    before = {name: p.clone() for name, p in learner.state_dict().items()}
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        seed_masks(learner, 0)  # the same masks, so that losses can be compared
        loss = task_losses(learner(*task), tasks.query_y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step_statistics(learner)
        losses.append(loss.item())
        if len(losses) == 1:
            after = learner.state_dict()
            assert all(
                not torch.equal(after[name], p)
                for name, p in before.items()
                if name.endswith(("weight", "U"))
            ), "one step moves every weight"
    assert losses[-1] < losses[0]
    learner.eval()
    with torch.no_grad():
        answers = learner(*task)
    assert answers.shape == (4, 9, 3) and answers.isfinite().all()
    assert torch.equal(answers, learner(*task)), "no masks at test"


@pytest.mark.parametrize("name", LEARNERS)
def test_any_network_has_one_mask_per_task(name, tasks):
    learner = with_mine(name, "group")
    support_x, support_y, query_x = in_colour(tasks)
    found = [
        passes(learner, (support_x[i], support_y[i], query_x[i])) for i in range(2)
    ]
    for each in found:
        assert len(each) >= 2 and all(dropped.any() for dropped, _ in each)
        assert not any(clash(one, each[0]) for one in each)
    assert clash(found[0][0], found[1][0]), "the next task has masks of its own"


@pytest.mark.parametrize("name", ["proto", "maml"])
def test_any_network_takes_a_batch_as_its_tasks_one_at_a_time(name, tasks):
    support_x, support_y, query_x = in_colour(tasks)
    batch = with_mine(name, "task")(support_x, support_y, query_x)
    learner = with_mine(name, "task")
    for i in range(4):
        assert torch.equal(batch[i], learner(support_x[i], support_y[i], query_x[i]))


@pytest.mark.parametrize(("name", "norm"), OWN)
def test_any_network_goes_through_fit_and_evaluate(name, norm, characters, tasks):
    learner = with_mine(name, norm, channels=1)
    history = fit(learner, TaskSampler(characters, 3, 2, 2), n_tasks=4, meta_batch=2)
    report = evaluate(learner, tasks)
    assert len(history.losses) == 2 and report.accuracies.shape == (4,)
    assert_copies(learner, tasks)
    if norm == "task":
        assert learner.network.norm.num_batches_tracked == 2, "one step an update"


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(16), nn.SyncBatchNorm(16)])
def test_maml_names_a_norm_that_it_cannot_use(norm):
    network = Mine("none")
    network.norm = norm
    with pytest.raises(ValueError, match=r"BatchNorm.* use TaskBatchNorm in its place"):
        MAML(network=network, embedding_dim=DIM)
    network.norm = nn.BatchNorm2d(16, track_running_stats=False)
    MAML(network=network, embedding_dim=DIM)


def in_one_row(network):
    return nn.Sequential(network, nn.Flatten(0))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("proto", lambda network: network.deep),  # feature maps
        ("proto", in_one_row),
        ("proto", lambda network: nn.Sequential(network, nn.Linear(DIM, DIM + 1))),
        ("maml", in_one_row),
    ],
)
def test_a_network_of_another_output_shape(name, wrong, tasks):
    network = wrong(Mine("none", channels=1))
    if isinstance(network[0], nn.Conv2d):
        network = nn.Sequential(nn.Conv2d(1, 16, 1), network)
    learner = LEARNERS[name](num_classes=3, embedding_dim=DIM, network=network)
    told = rf"network made \[.*\] of 6 images, expected \[6, {DIM}\].*embedding_dim"
    for mode in (True, False):
        with pytest.raises(ValueError, match=told):
            learner.train(mode)(*inputs(tasks))


# --- parts ---


def test_class_means():
    vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    labels = torch.tensor([1, 1, 0])
    assert class_means(vectors, labels, 2).tolist() == [[0.0, 5.0], [2.0, 0.0]]


@pytest.mark.parametrize("kind", LEARNERS.values(), ids=LEARNERS)
def test_settings_that_a_network_of_ones_own_would_ignore_are_refused(kind):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(400, 64))
    with pytest.raises(ValueError, match="image_size would be ignored"):
        kind(network=network, image_size=20)
    with pytest.raises(ValueError, match="dropout_rates would be ignored"):
        kind(network=network, dropout_rates=(0.5,))
    kind(network=network)
