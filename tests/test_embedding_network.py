import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metadropout_nb.embedding_network import ConvBlock, EmbeddingNetwork, TaskBatchNorm
from metadropout_nb.meta_dropout import ARMS, MetaDropout

SIZE = 20


def network(**arguments) -> EmbeddingNetwork:
    torch.manual_seed(0)
    return EmbeddingNetwork(
        **{"image_size": SIZE, "dropout_rates": [0.1, 0.2, 0.3]} | arguments
    )


@pytest.fixture
def x(tasks):
    return tasks.support_x[0]


def running(net):
    return torch.cat(
        [torch.cat([norm.running_mean, norm.running_var]) for norm in net.norms]
    )


def test_the_promise(x):
    net = network()
    net.reset_dropout_masks(x.shape, x.device)
    assert torch.equal(net(x), net(x))
    first = net(x)
    net.reset_dropout_masks(x.shape, x.device)
    assert not torch.equal(net(x), first)


def test_never_silently_unmasked(x):
    net = network()
    masked = net(x)
    net.force_eval = True
    assert not torch.allclose(masked, net(x)), "a bare network draws masks at first use"


def test_shapes_at_the_origins_size():
    net = EmbeddingNetwork()
    assert net.linear.in_features == 64 * 6 * 6
    net.reset_dropout_masks((5, 1, 105, 105), "cpu")
    assert [site.mask.shape[-1] for site in net.sites[:3]] == [
        105,
        52,
        26,
    ] and net.sites[3].mask is None
    assert net(torch.rand(2, 1, 105, 105)).shape == (2, 64)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_block_is_the_textbook_block(channels):
    "Convolution, batch norm, ReLU, mask, pool, in this order: outputs and gradients, with own and fixed statistics."
    torch.manual_seed(0)
    block = ConvBlock(channels, 4, MetaDropout(0.3)).double().train()
    nn.init.normal_(block.norm.weight)  # negative scales too
    nn.init.normal_(block.norm.bias)
    x = torch.randn(5, channels, 12, 12, dtype=torch.float64)
    weight = torch.randn(5, 4, 6, 6, dtype=torch.float64)
    block.dropout.reset_mask((5, 4, 12, 12), "cpu", torch.float64)
    norm, inputs = nn.BatchNorm2d(4).double(), list(block.parameters())
    norm.load_state_dict(block.norm.state_dict())
    for source, training in (("running", False), ("own", True)):
        block.norm.source = source
        y = F.relu(norm.train(training)(block.conv(x)))
        expected = F.max_pool2d(y * block.dropout.mask, 2)
        found = block(x)
        assert (found - expected).abs().max() < 1e-12
        gradients = torch.autograd.grad((found * weight).sum(), inputs)
        wanted = torch.autograd.grad(
            (expected * weight).sum(), [*block.conv.parameters(), *norm.parameters()]
        )
        assert all(
            (g - w).abs().max() < 1e-10 for g, w in zip(gradients, wanted, strict=True)
        )
    assert (
        block.norm.batch_statistics[0] - block.conv(x).mean((0, 2, 3))
    ).abs().max() < 1e-12
    assert (
        block.norm.batch_statistics[1] - block.conv(x).var((0, 2, 3))
    ).abs().max() < 1e-12


def test_a_fourth_rate_adds_a_site(x):
    net = network(dropout_rates=[0.1, 0.1, 0.1, 0.1])
    net(x)
    assert all(site.mask is not None for site in net.sites)


def test_eval_is_deterministic_and_unmasked(x):
    net = network()
    net(x)
    net.eval()
    clean = net(x)
    assert torch.equal(clean, net(x))
    net.reset_dropout_masks(x.shape, x.device)
    assert torch.equal(clean, net(x))


def test_force_eval_switches_dropout_off_in_train_mode(x):
    net, clean = network(), network(dropout="none")
    net.force_eval = True
    assert net.force_eval and net.training and torch.equal(net(x), clean(x))


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("query", [False, True])
def test_a_batch_equals_its_tasks_one_at_a_time(tasks, arm, query):
    images = tasks.query_x.double()
    batched, single = network(dropout=arm).double(), network(dropout=arm).double()
    together = batched(images, query)
    apart = []
    for task in range(len(images)):
        single.reset_dropout_masks(images[task].shape, "cpu")
        apart.append(single(images[task], query))
    assert (together - torch.stack(apart)).abs().max() < 1e-10
    together.square().sum().backward()
    torch.stack(apart).square().sum().backward()
    for p, q in zip(batched.parameters(), single.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-10 * max(1, q.grad.abs().max())


def test_shared_batch_statistics_would_be_caught(tasks):
    "The comparison above fails on a network that normalises all tasks of a batch together."
    images = tasks.query_x.double()
    net = network(dropout="none").double()
    apart = torch.stack([net(task) for task in images])
    assert not torch.allclose(
        net(images.flatten(0, 1)).unflatten(0, images.shape[:2]), apart, atol=1e-3
    )


def test_running_statistics_take_one_step_towards_the_tasks_average(tasks):
    together, chunked, reference = (network(dropout="none").double() for _ in range(3))
    images = tasks.query_x.double()
    before = running(together)
    together(images)
    with chunked.one_update():
        for part in (images[:1], images[1:]):
            chunked(part)
    assert (running(together) - running(chunked)).abs().max() < 1e-10
    assert (running(together) - before).abs().max() > 1e-3, "they did move"
    activations = (
        reference.blocks[0].conv(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    )
    mean = activations.mean((1, 3, 4)).mean(0)
    var = torch.stack(
        [task.transpose(0, 1).flatten(1).var(1) for task in activations]
    ).mean(0)
    left = 0.9 ** len(images)  # one step of momentum 0.1 a pass
    assert torch.allclose(together.norms[0].running_mean, (1 - left) * mean, atol=1e-10)
    assert torch.allclose(
        together.norms[0].running_var, left + (1 - left) * var, atol=1e-10
    )


def test_an_error_inside_a_meta_batch_leaves_running_statistics_alone(tasks):
    net = network()
    before = running(net)
    with pytest.raises(RuntimeError), net.one_update():
        net(tasks.query_x)
        raise RuntimeError
    assert torch.equal(running(net), before)


def test_task_batch_norm_is_batch_norm(x):
    ours, torchs = TaskBatchNorm(1), nn.BatchNorm2d(1)
    assert torch.allclose(ours(x), torchs(x), atol=1e-6)


class TestStatisticsAtTest:
    @pytest.fixture
    def trained(self, tasks):
        net = network()
        for _ in range(3):
            net(tasks.query_x)
        return net.eval()

    def leaks(self, net, x, others):
        "Whether an image's embedding changes with the other query images."
        with torch.no_grad():
            net(others)
            return not torch.allclose(
                net(x, query=True)[0],
                net(torch.cat([x[:1], others]), query=True)[0],
                atol=1e-5,
            )

    @pytest.mark.parametrize(
        ("statistics", "leaks"),
        [
            ("running", False),
            ("support", False),
            ("transductive", True),
            ("mixed", False),
        ],
    )
    def test_leak_between_query_samples(self, trained, tasks, statistics, leaks):
        trained.statistics = statistics
        assert self.leaks(trained, tasks.query_x[0], tasks.query_x[1]) == leaks

    def test_support_statistics_are_the_support_sets(self, trained, tasks):
        trained.statistics = "support"
        support, query = tasks.support_x[0], tasks.query_x[0]
        trained(support)
        assert torch.allclose(trained(support, query=True), trained(support), atol=1e-5)
        first = trained(query, query=True)
        trained(tasks.support_x[1])
        assert not torch.allclose(first, trained(query, query=True), atol=1e-3)

    def test_eval_changes_no_running_statistics(self, trained, tasks):
        before = running(trained)
        for name in ("running", "support", "transductive"):
            trained.statistics = name
            trained(tasks.query_x[0])
        assert torch.equal(before, running(trained))

    def test_support_statistics_need_a_support_set_first(self, trained, tasks):
        trained.statistics = "support"
        with pytest.raises(ValueError, match="support set has to be embedded before"):
            trained(tasks.query_x[0], query=True)

    def test_unknown_name(self, trained):
        with pytest.raises(ValueError, match="'batch'.*running, support, transductive"):
            trained.statistics = "batch"


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(5, 1, 21, 21),
        torch.rand(5, 3, SIZE, SIZE),
        torch.rand(5, SIZE, SIZE),
        torch.rand(SIZE, SIZE),
        torch.zeros(5, 1, SIZE, SIZE, dtype=torch.uint8),
    ],
    ids=["size", "channels", "rank 3", "rank 2", "bytes"],
)
@pytest.mark.parametrize("training", [True, False])
def test_images_that_do_not_fit(images, training):
    net = network().train(training)
    before = running(net)
    with pytest.raises(ValueError, match="expected gray images|floating point"):
        net(images)
    assert torch.equal(before, running(net))


def test_unequal_task_and_mask_counts(tasks):
    net = network()
    net.reset_dropout_masks(tasks.query_x[:3].shape, "cpu")
    with pytest.raises(ValueError, match=r"masks \[3, 1, .*batch of 4"):
        net(tasks.query_x)
    net.reset_dropout_masks(tasks.query_x.shape, "cpu")
    with pytest.raises(ValueError, match="does not fit"):
        net(tasks.query_x[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout_rates": [0.1, 1.0]}, r"\[0, 1\)"),
        ({"dropout_rates": [0.1] * 5}, "4 blocks, got 5"),
        ({"dropout": "all"}, "unknown dropout arm 'all'"),
        ({"image_size": 15}, "at least 16"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)
