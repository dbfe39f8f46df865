"""The network: batches, statistics, masks and settings."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metadropout_nb.embedding_network import (
    STATISTICS,
    ConvBlock,
    EmbeddingNetwork,
    TaskBatchNorm,
)
from metadropout_nb.meta_dropout import ARMS, MetaDropout, seed_masks
from metadropout_nb.training import step_statistics

SIZE = 20
EMBEDDING_ONLY = [0, 0, 0, 0, 0.3]


def network(**arguments) -> EmbeddingNetwork:
    torch.manual_seed(0)
    return EmbeddingNetwork(
        **{"image_size": SIZE, "dropout_rates": [0.1, 0.2, 0.3]} | arguments
    )


def trained(**arguments) -> EmbeddingNetwork:
    "In double precision, with running statistics, weights and biases of every sign."
    net = network(**arguments).double()
    for block in net.blocks:
        nn.init.normal_(block.norm.weight)
        nn.init.normal_(block.norm.bias)
    with torch.no_grad():
        net(torch.rand(2, 5, net.in_channels, SIZE, SIZE, dtype=torch.float64))
    net.eval()
    seed_masks(net, 0)
    return net


@pytest.fixture
def x(tasks):
    return tasks.support_x[0]


def stored(net):
    norms = [block.norm for block in net.blocks]
    return torch.cat([torch.cat([n.running_mean, n.running_var]) for n in norms])


def running(net):
    "Running statistics, after a step where something was gathered."
    step_statistics(net)
    return stored(net)


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


def test_the_same_task_again(x):
    net = network()
    first = net(x)
    net.reset_dropout_masks(x.shape)
    assert not torch.equal(net(x), first) and net.next_task == 2
    net.next_task = 0
    net.reset_dropout_masks(x.shape)
    assert torch.equal(net(x), first)
    seed_masks(net, 1)
    assert not torch.equal(net(x), first)
    seed_masks(net, 0)
    assert torch.equal(net(x), first)


def test_shapes_at_the_origins_size():
    net = EmbeddingNetwork()
    assert net.linear.in_features == 64 * 6 * 6
    net.reset_dropout_masks((5, 1, 105, 105), "cpu")
    assert [site.mask.shape[-1] for site in net.sites[:3]] == [105, 52, 26]
    assert net.sites[3].mask is None and net.sites[4].mask is None
    assert net(torch.rand(2, 1, 105, 105)).shape == (2, 64)


@pytest.mark.parametrize("after_pool", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_block_is_the_textbook_block(channels, after_pool):
    "Outputs, gradients and statistics, with own and fixed statistics."
    torch.manual_seed(0)
    layer = MetaDropout(0.3)
    block = ConvBlock(channels, 4, layer, after_pool=after_pool).double()
    nn.init.normal_(block.norm.weight)  # negative scales too
    nn.init.normal_(block.norm.bias)
    x = torch.randn(5, channels, 12, 12, dtype=torch.float64)
    weight = torch.randn(5, 4, 6, 6, dtype=torch.float64)
    norm, inputs = nn.BatchNorm2d(4).double(), list(block.parameters())
    norm.load_state_dict(block.norm.state_dict())
    for training in (True, False):
        block.train(training), norm.train(training)
        layer.train()  # masked in both modes, so that both have something to agree on
        found = block(x)
        y = F.relu(norm(block.conv(x)))
        if after_pool:
            expected = F.max_pool2d(y, 2) * layer.mask
        else:
            expected = F.max_pool2d(y * layer.mask, 2)
        assert (layer.mask == 0).any() and (found - expected).abs().max() < 1e-12
        gradients = torch.autograd.grad((found * weight).sum(), inputs)
        wanted = torch.autograd.grad(
            (expected * weight).sum(), [*block.conv.parameters(), *norm.parameters()]
        )
        for g, w in zip(gradients, wanted, strict=True):
            assert (g - w).abs().max() < 1e-10
    mean, var = block.norm.seen
    over = block.conv(x).transpose(0, 1).flatten(1)
    assert (mean[0] - over.mean(1)).abs().max() < 1e-12
    assert (var[0] - over.var(1, correction=0)).abs().max() < 1e-12
    assert (block.norm.running_mean - norm.running_mean).abs().max() < 1e-12
    assert (block.norm.running_var - norm.running_var).abs().max() < 1e-12


def test_further_rates_add_sites(x):
    net = network(dropout_rates=[0.1] * 5)
    net(x)
    assert len(net.sites) == 5 and all(site.mask is not None for site in net.sites)
    assert [site.site for site in net.sites] == list(range(5))
    first, again = (net.sites[i].mask.shape for i in (0, 4))
    assert first == (1, 64, SIZE, SIZE) and again == (1, 64, 1, 1)


@pytest.mark.parametrize("after_pool", [False, True])
@pytest.mark.parametrize("lead", [(), (4,)])
def test_masks_have_the_shape_of_what_arrives(tasks, after_pool, lead):
    "Those that are drawn in advance, and those drawn at first use: the same."
    images = tasks.support_x if lead else tasks.support_x[0]
    settings = {"dropout_rates": [0.1] * 5, "after_pool": after_pool}
    ahead, at_first_use = network(**settings), network(**settings)
    ahead.reset_dropout_masks(images.shape)
    at_first_use(images)
    sides = [SIZE >> (i + after_pool) for i in range(4)]
    for site, other, side in zip(
        ahead.sites, at_first_use.sites, [*sides, 1], strict=True
    ):
        assert site.mask.shape == (*lead, 1, 64, side, side)
        assert torch.equal(site.mask, other.mask)


@pytest.mark.parametrize("arm", ARMS)
def test_support_and_query_share_the_mask_of_the_embedding_as_the_arm_says(tasks, arm):
    net = network(dropout_rates=EMBEDDING_ONLY, dropout=arm)
    support, query = tasks.support_x[0], tasks.query_x[0]
    dropped = [
        net(images, is_query) == 0
        for images, is_query in ((support, False), (query, True), (support, False))
    ]
    shared = [all(torch.equal(row, one[0]) for row in one) for one in dropped]
    across = torch.equal(dropped[0][0], dropped[1][0])
    assert shared == [arm != "standard"] * 3
    assert across == (arm in ("none", "meta"))
    assert [bool(one.any()) for one in dropped] == [
        arm != "none",
        arm not in ("none", "support"),
        arm != "none",
    ]
    assert torch.equal(dropped[0], dropped[2]) == (arm != "standard")
    net.reset_dropout_masks(support.shape)
    assert torch.equal(net(support) == 0, dropped[0]) == (arm == "none")


def test_support_and_query_share_the_masks_after_the_pools(tasks):
    net = network(dropout_rates=[0.3] * 4, after_pool=True)
    dropped = {}
    for block, layer in enumerate(net.sites[:4]):
        layer.register_forward_hook(
            lambda layer, given, y, block=block: dropped.setdefault(block, []).append(
                ((given[0] > 0) & (y == 0)).any(0)
            )
        )
    net(tasks.support_x[0]), net(tasks.query_x[0], query=True)
    for block, layer in enumerate(net.sites[:4]):
        support, query = dropped[block]
        assert support.any() and not (support & (layer.mask[0] > 0)).any()
        assert query.any() and not (query & (layer.mask[0] > 0)).any()


def test_masks_drawn_in_inference_mode_can_be_trained_with(x):
    net = network(dropout_rates=[0.1] * 5)
    with torch.inference_mode():
        first = net(x)
    again = net(x)
    again.square().sum().backward()
    assert torch.equal(first, again)
    assert all(p.grad is not None for p in net.parameters())
    running(net)  # what was gathered there can be used


def test_a_network_in_double_precision_takes_images_in_single_precision(x):
    net = network().double()
    y = net(x)
    assert x.dtype == torch.float32 and y.dtype == torch.float64
    assert torch.equal(y, net(x.double()))


def test_colour_images():
    net, images = network(in_channels=3), torch.rand(2, 5, 3, SIZE, SIZE)
    y = net(images)
    y.square().sum().backward()
    assert y.shape == (2, 5, 64) and net.blocks[0].conv.weight.grad.shape[1] == 3
    net.eval()
    for colour in range(3):  # each has a say
        others = images.clone()
        others[:, :, colour] = 0
        assert not torch.allclose(net(others), net(images), atol=1e-4)


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


def results(net, supports, queries, parts):
    "Outputs, gradients and running statistics, the tasks given in these parts."
    outputs = []
    for part in parts:
        if net.training:
            net.reset_dropout_masks(supports[part].shape)
        passes = net(supports[part]), net(queries[part], query=True)
        outputs.append(torch.cat(passes, -2).reshape(-1, net.embedding_dim))
    outputs = torch.cat(outputs)
    outputs.square().sum().backward()
    gradients = [p.grad for p in net.parameters()]
    return outputs.detach(), gradients, running(net)


def assert_same(found, expected):
    (outputs, gradients, statistics), (wanted, slopes, moved) = found, expected
    assert (outputs - wanted).abs().max() < 1e-10
    for g, w in zip(gradients, slopes, strict=True):
        assert (g - w).abs().max() <= 1e-10 * max(1, w.abs().max())
    assert (statistics - moved).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("mode", "arm"),
    [*(("train", arm) for arm in ARMS), *((mode, "meta") for mode in STATISTICS)],
)
def test_a_batch_equals_its_tasks_one_at_a_time(tasks, arm, mode):
    "Support and query passes, in train mode and at test with all statistics."
    sets = tasks.support_x.double(), tasks.query_x.double()
    found = []
    for parts in ([slice(None)], range(4), [slice(0, 1), slice(1, 4)]):
        net = trained(dropout=arm, dropout_rates=[0.1, 0.2, 0.3, 0.1, 0.1])
        if mode == "train":
            net.train()
        else:
            net.statistics = mode
        before = running(net)
        found.append(results(net, *sets, parts))
        assert torch.equal(found[-1][-1], before) == (mode != "train")
    assert_same(found[0], found[1])
    assert_same(found[2], found[1])


@pytest.mark.parametrize(
    "settings",
    [
        {"after_pool": True},
        {"dropout_rates": EMBEDDING_ONLY},
        {"whole_channels": True},
        {"in_channels": 3},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_batch_equals_its_tasks_in_other_settings(tasks, settings):
    channels = settings.get("in_channels", 1)
    sets = [
        images.double() * torch.linspace(1, 0.2, channels)[:, None, None]
        for images in (tasks.support_x, tasks.query_x)
    ]
    together, apart = (
        results(trained(**settings).train(), *sets, parts)
        for parts in ([slice(None)], range(4))
    )
    assert_same(together, apart)


def test_shared_batch_statistics_would_be_caught(tasks):
    "The comparison above fails where all tasks of a batch are normalised together."
    images = tasks.query_x.double()
    net = network(dropout="none").double()
    apart = torch.stack([net(task) for task in images])
    flat = net(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    assert not torch.allclose(flat, apart, atol=1e-3)


class TestRunningStatistics:
    "Gathered like gradients, and moved once per update."

    @pytest.mark.parametrize("chunk", [1, 3])
    def test_are_the_same_for_any_chunk(self, tasks, chunk):
        whole, chunked, stepped = (network(dropout="none").double() for _ in range(3))
        images = tasks.query_x.double()
        before = running(whole)
        whole(images)
        for part in images.split(chunk):
            chunked(part)
            stepped(part)
            step_statistics(stepped)
        assert (running(whole) - before).abs().max() > 1e-3, "they did move"
        assert (running(chunked) - running(whole)).abs().max() < 1e-12
        # One step per chunk is another thing, and would be found out.
        assert (running(stepped) - running(whole)).abs().max() > 1e-6
        assert int(whole.blocks[0].norm.num_batches_tracked) == 1

    def test_take_one_step_towards_the_average_of_the_passes(self, tasks):
        net, images = network(dropout="none").double(), tasks.query_x.double()
        net(images)
        running(net)
        activations = net.blocks[0].conv(images.flatten(0, 1))
        activations = activations.unflatten(0, images.shape[:2])
        mean = activations.mean((1, 3, 4)).mean(0)
        var = activations.transpose(1, 2).flatten(2).var(2).mean(0)
        left = 0.9 ** len(images)  # as long as a step of momentum 0.1 per pass
        norm = net.blocks[0].norm
        assert torch.allclose(norm.running_mean, (1 - left) * mean, atol=1e-10)
        assert torch.allclose(norm.running_var, left + (1 - left) * var, atol=1e-10)

    def test_every_update_starts_from_nothing(self, tasks):
        "One pass per update is what PyTorch's layer knows."
        ours, torchs = TaskBatchNorm(1).double(), nn.BatchNorm2d(1).double()
        for images in tasks.query_x.double():
            ours(images), torchs(images)
            ours.step()
        assert torch.allclose(ours.running_mean, torchs.running_mean, atol=1e-12)
        assert torch.allclose(ours.running_var, torchs.running_var, atol=1e-12)

    def test_a_step_without_passes_moves_nothing(self, x):
        net = network()
        net(x)
        after = running(net)
        assert torch.equal(running(net), after)

    def test_move_on_leaving_train_mode(self, x):
        by_hand, by_itself = network(), network()
        by_hand(x), by_itself(x)
        before = stored(by_itself)
        by_itself.eval()
        assert not torch.equal(stored(by_itself), before)
        assert torch.equal(running(by_hand), stored(by_itself))

    def test_are_left_alone_where_passes_do_not_count(self, x):
        net = network()
        before = running(net)
        for block in net.blocks:
            block.norm.gathers = False
        net(x)
        assert torch.equal(running(net), before)

    def test_what_is_gathered_is_never_saved(self, x):
        net = network()
        net(x)
        ours, torchs = net.blocks[0].norm.state_dict(), nn.BatchNorm2d(3).state_dict()
        assert ours.keys() == torchs.keys()
        assert not [name for name in net.state_dict() if "mask" in name]


def test_task_batch_norm_is_batch_norm(x):
    ours, torchs = TaskBatchNorm(1), nn.BatchNorm2d(1)
    assert torch.allclose(ours(x), torchs(x), atol=1e-6)
    assert torch.allclose(ours.eval()(x), torchs.eval()(x), atol=1e-6)
    assert torch.allclose(ours.running_var, torchs.running_var)


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
            alone = net(x, query=True)[0]
            beside = net(torch.cat([x[:1], others]), query=True)[0]
            return not torch.allclose(alone, beside, atol=1e-5)

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

    def test_whose_statistics_they_are(self, trained, tasks):
        "Of the support set and of the query set, against the two plain choices."
        found = {}
        for name in STATISTICS:
            trained.statistics = name
            found[name] = (
                trained(tasks.support_x[0]),
                trained(tasks.query_x[0], query=True),
            )
        support, query = (
            {name: sets[i] for name, sets in found.items()} for i in (0, 1)
        )
        own = {"support", "transductive", "mixed"}
        for name in STATISTICS:
            same = torch.allclose(support[name], support["transductive"], atol=1e-5)
            assert same == (name in own)
        assert torch.equal(query["mixed"], query["running"])
        for name in ("running", "transductive"):
            assert not torch.allclose(query["support"], query[name], atol=1e-3)

    def test_eval_changes_no_running_statistics(self, trained, tasks):
        before = running(trained)
        for name in STATISTICS:
            trained.statistics = name
            trained(tasks.query_x[0])
        assert torch.equal(before, running(trained))

    def test_support_statistics_need_a_support_set_first(self, tasks):
        net = network(statistics="support").eval()
        with pytest.raises(ValueError, match="support set has to be embedded before"):
            net(tasks.query_x[0], query=True)

    def test_are_a_setting_of_every_norm(self, trained):
        for net in (trained, network(statistics="mixed")):
            net.statistics = "mixed"
            assert net.statistics == "mixed"
            assert {block.norm.statistics for block in net.blocks} == {"mixed"}

    def test_unknown_name(self, trained):
        with pytest.raises(ValueError, match="'batch'.*running, support, transductive"):
            trained.statistics = "batch"
        with pytest.raises(ValueError, match="'batch'"):
            network(statistics="batch")


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(5, 1, 21, 21),
        torch.zeros(5, 3, SIZE, SIZE),
        torch.zeros(5, SIZE, SIZE),
        torch.zeros(SIZE, SIZE),
        torch.zeros(5, 1, SIZE, SIZE, dtype=torch.uint8),
    ],
    ids=["size", "channels", "rank 3", "rank 2", "bytes"],
)
@pytest.mark.parametrize("training", [True, False])
def test_images_that_do_not_fit(images, training):
    net = network().train(training)
    before = running(net)
    with pytest.raises(ValueError, match="expected images|floating point"):
        net(images)
    assert torch.equal(before, running(net))


def test_gray_images_do_not_fit_a_network_for_colour(x):
    with pytest.raises(ValueError, match=r"expected images \[B, 3, 20, 20\]"):
        network(in_channels=3)(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout_rates": [0.1, 1.0]}, r"\[0, 1\)"),
        ({"dropout_rates": [0.1] * 6}, "4 blocks and the embedding to mask, got 6"),
        ({"dropout": "all"}, "unknown dropout arm 'all'"),
        ({"image_size": 15}, "at least 16"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match=r"no images in \[0, 1, 20, 20\]"):
        network()(torch.zeros(0, 1, SIZE, SIZE))
