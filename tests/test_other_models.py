"""The layer in other people's models, and numbers as others bring them"""

import copy
import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

from metadropout_nb.embedding_network import EmbeddingNetwork, TaskBatchNorm
from metadropout_nb.maml import MAML
from metadropout_nb.meta_dropout import ARMS, MetaDropout
from metadropout_nb.omniglot import glyphs
from metadropout_nb.original_meta_network import OriginalMetaNetwork
from metadropout_nb.tasks import TaskBatch, TaskDataset, TaskSampler
from metadropout_nb.training import (
    PrototypicalNetwork,
    class_means,
    evaluate,
    fit,
    task_accuracies,
)

CHARACTERS = glyphs(10, 8, 20)
IMAGES = torch.rand(6, 1, 20, 20, generator=torch.manual_seed(0))


def sampler(seed=0):
    return TaskSampler(CHARACTERS, 3, 1, 3, seed)


def learner(kind=PrototypicalNetwork, **settings):
    torch.manual_seed(0)
    return kind(num_classes=3, image_size=20, **settings)


def network(**settings):
    torch.manual_seed(0)
    return EmbeddingNetwork(image_size=20, **settings)


# Recomputation


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_recomputation_meets_the_same_mask(arm, reentrant):
    layer = MetaDropout(0.5, arm)
    for _ in range(2):
        x = torch.ones(4, 8, 6, 6, requires_grad=True)
        y = checkpoint(layer, x, use_reentrant=reentrant)
        torch.sin(y).sum().backward()
        assert torch.equal(y == 0, x.grad == 0)
        layer.start_tasks()


def test_recomputation_of_a_task_before_the_last_is_an_error():
    layer, x = MetaDropout(0.5), torch.ones(4, 8, 6, 6, requires_grad=True)
    early = torch.sin(checkpoint(layer, x, use_reentrant=False)).sum()
    layer.start_tasks()
    late = torch.sin(checkpoint(layer, x, use_reentrant=False)).sum()
    with pytest.raises(RuntimeError, match="several masks"):
        (early + late).backward()
    with pytest.raises(RuntimeError, match="several masks"):
        layer.train()
        early = torch.sin(checkpoint(layer, x, use_reentrant=False)).sum()
        layer.start_tasks()
        early.backward()


@pytest.mark.parametrize("arm", ["standard", "separate", "support"])
def test_recomputation_of_the_support_set_after_the_query_set_is_an_error(arm):
    layer, x = MetaDropout(0.5, arm), torch.ones(4, 8, 6, 6, requires_grad=True)
    support = checkpoint(layer, x, use_reentrant=False)
    query = checkpoint(layer, x, True, use_reentrant=False)
    with pytest.raises(RuntimeError, match="several masks"):
        (torch.sin(support) + torch.sin(query)).sum().backward()


def test_recomputation_counts_batch_statistics_once():
    plain, again = network(), network()
    plain(IMAGES).square().sum().backward()
    checkpoint(again, IMAGES, use_reentrant=False).square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    assert [b.norm.passes for b in plain.blocks] == [
        b.norm.passes for b in again.blocks
    ]
    assert same_state(plain.eval(), again.eval())


def same_state(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# Nobody starts a task, other ranks


def test_one_warning_where_nobody_starts_a_task():
    layer = MetaDropout(0.5)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(12):
            layer.train()(torch.ones(5, 4, 6, 6))
    assert len(said) == 1 and "start_tasks" in str(said[0].message)


def test_no_warning_where_tasks_are_started():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = MetaDropout(0.5)
        for _ in range(5):
            layer.start_tasks()
            layer(torch.ones(2, 3)), layer(torch.ones(2, 3), query=True)
        fit(learner(MAML, inner_steps=4), sampler(), 2, 2)


def test_a_warning_where_a_task_was_started_once_for_all():
    layer = MetaDropout(0.5)
    layer.start_tasks()
    with pytest.warns(UserWarning, match="1000 passes"):
        for _ in range(1001):
            layer(torch.ones(1, 2))


@pytest.mark.parametrize("shape", [(5, 40), (5, 4, 10), (5, 4, 5, 6)])
@pytest.mark.parametrize("arm", ["meta", "standard"])
def test_vectors_and_sequences(shape, arm):
    y = MetaDropout(0.5, arm)(torch.ones(shape))
    assert y.shape == shape and set(y.unique().tolist()) == {0, 2}
    assert all(torch.equal(y[0], other) for other in y) == (arm == "meta")


def test_whole_channels_of_a_sequence():
    y = MetaDropout(0.5, whole_channels=True)(torch.ones(5, 40, 10))
    assert torch.equal(y, y[:1, :, :1].expand_as(y)) and (y == 0).any()


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6)])
def test_other_ranks_are_refused(shape):
    with pytest.raises(ValueError, match=r"start_tasks|expected floating"):
        MetaDropout(0.5)(torch.ones(shape))


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        MetaDropout(0.5)(torch.ones(2, 3, dtype=torch.int64))


def test_several_tasks_begun_and_one_arrives():
    layer = MetaDropout(0.5)
    layer.start_tasks(3)
    with pytest.raises(ValueError, match="3 tasks have begun"):
        layer(torch.ones(4, 2, 5, 5))


# Monte Carlo dropout, modes


@pytest.mark.parametrize("kind", [PrototypicalNetwork, MAML])
@pytest.mark.parametrize("arm", ["standard", "meta", "separate"])
def test_monte_carlo_dropout(kind, arm):
    task, model = sampler().sample()[0], learner(kind, dropout=arm).eval()
    for site in model.network.sites:
        site.train()
    with torch.no_grad():
        passes = [model(task.support_x, task.support_y, task.query_x) for _ in range(3)]
    assert torch.stack(passes).std(0).max() > 0
    assert model.network.next_task == 3


def test_one_site_in_train_mode_keeps_all_at_the_same_task():
    task, model = sampler().sample()[0], learner().eval()
    model.network.sites[1].train()
    model(task.support_x, task.support_y, task.query_x)
    assert {site.next_task for site in model.network.sites} == {1}


def test_evaluate_leaves_each_module_in_its_mode():
    model = learner()
    model.network.blocks[0].eval()
    before = [module.training for module in model.modules()]
    evaluate(model, sampler().sample(2))
    assert [module.training for module in model.modules()] == before


def test_statistics_where_the_mode_is_set_without_train():
    by_call, by_hand = network(), network()
    by_call(IMAGES), by_hand(IMAGES)
    for module in by_hand.modules():
        module.training = False
    assert torch.equal(by_call.eval()(IMAGES), by_hand(IMAGES))


# Hooks, pruning, other layers


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook"]
    + ["register_full_backward_hook", "register_full_backward_pre_hook"],
)
def test_hooks_fire(mode, register):
    net, fired, expected = network(dropout="none"), [], network(dropout="none")
    names = [
        n for n, _ in net.named_modules() if n.endswith((".conv", ".norm", ".pool"))
    ]
    for name in names:
        hook = lambda *_, name=name: fired.append(name)  # noqa: E731
        getattr(net.get_submodule(name), register)(hook)
    images = IMAGES.clone().requires_grad_()
    y = net.train(mode)(images)
    y.sum().backward()
    assert sorted(fired) == sorted(names)
    torch.testing.assert_close(y, expected.train(mode)(IMAGES))


def test_global_hooks_fire():
    net, fired = network().eval(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: fired.append(module)
    )
    net(IMAGES)
    handle.remove()
    assert all(block.conv in fired and block.norm in fired for block in net.blocks)


def test_pruned_weights_are_those_that_train():
    net = network(dropout="none").to(memory_format=torch.contiguous_format)
    for block in net.blocks:
        prune.l1_unstructured(block.conv, "weight", 0.5)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        net(IMAGES).square().sum().backward()
        optimizer.step()
    conv, y = net.blocks[1].conv, net.eval()(IMAGES)
    assert torch.equal(conv.weight, conv.weight_orig * conv.weight_mask)
    for block in net.blocks:
        prune.remove(block.conv, "weight")
    torch.testing.assert_close(net(IMAGES), y)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_changed_convolutions():
    twice, built = network(dropout="none").eval(), network(dropout="none").eval()
    for net, change in ((twice, True), (built, False)):
        for block in net.blocks:
            if change:
                parametrize.register_parametrization(block.conv, "weight", Doubled())
            else:
                block.conv.weight.data *= 2
    torch.testing.assert_close(twice(IMAGES), built(IMAGES))
    built.blocks[0].conv.forward = lambda x: torch.zeros(6, 64, 20, 20)
    assert len(built(IMAGES).unique(dim=0)) == 1


def test_another_convolution_and_norm_in_a_block():
    net = network(dropout="none").eval()
    net.blocks[1].conv = nn.Conv2d(64, 64, 3, padding=2, dilation=2, bias=False)
    net.blocks[2].norm = nn.GroupNorm(8, 64)
    block, x = net.blocks[1], torch.rand(2, 64, 8, 8)
    torch.testing.assert_close(block.normalised(x), block.norm(block.conv(x)))
    assert net(IMAGES).shape == (6, 64)


# Averaged models, copies, own loops


def own_loop(model, updates=4, after=lambda model: None):
    tasks, optimizer = sampler(), torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(updates):
        task = tasks.sample()[0]
        logits = model(task.support_x, task.support_y, task.query_x)
        F.cross_entropy(logits, task.query_y).backward()
        optimizer.step()
        optimizer.zero_grad()
        after(model)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_models(use_buffers):
    model, states = learner(), []
    own_loop(model, 1)
    average = AveragedModel(model, use_buffers=use_buffers)

    def update(model):
        average.update_parameters(model)
        states.append([p.detach().clone() for p in model.parameters()])

    own_loop(model, 4, update)
    for p, *each in zip(average.parameters(), *states, strict=True):
        torch.testing.assert_close(p, torch.stack(each).mean(0))
    norm = average.module.eval().network.blocks[1].norm
    assert norm.num_batches_tracked > 1 and norm.running_mean.abs().max() > 0.01


def test_update_bn_averages_all_batches():
    net, alone = network(dropout="none"), network(dropout="none")
    net(IMAGES)
    update_bn([IMAGES[:2], IMAGES[2:4], IMAGES[4:]], net.eval())
    means = []
    for i in (0, 2, 4):
        alone(IMAGES[i : i + 2])
        means.append(alone.blocks[2].norm.seen[0][0])
    norm = net.blocks[2].norm
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    assert norm.momentum == 0.1 and norm.passes == 0


def test_weights_saved_in_train_mode_have_their_statistics():
    model = learner()
    own_loop(model)
    saved = copy.deepcopy(model.state_dict())
    assert all(torch.equal(saved[k], v) for k, v in model.eval().state_dict().items())
    assert saved["network.blocks.1.norm.num_batches_tracked"] == 4


def test_loaded_statistics_stay():
    model, other = learner(), learner()
    own_loop(model, 2)
    model.load_state_dict(other.state_dict())
    assert same_state(model.eval(), other)


def test_copies_and_pickles_in_the_middle_of_a_task():
    model = learner()
    own_loop(model, 1)
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other.network.sites[1].mask, model.network.sites[1].mask)
    assert not [name for name, _ in model.network.named_buffers() if "mask" in name]


@pytest.mark.parametrize("statistics", ["support", "mixed"])
@pytest.mark.parametrize("wrap", [AveragedModel, lambda n: nn.Sequential(n)])
def test_a_wrapped_network_knows_support_from_query(statistics, wrap):
    task, net = sampler().sample()[0], network(statistics=statistics)
    one, other = (PrototypicalNetwork(3, 64, network=n) for n in (net, wrap(net)))
    inputs = task.support_x, task.support_y, task.query_x
    expected = one.eval()(*inputs)
    assert torch.equal(other.eval()(*inputs), expected)
    assert not net.query


# Export

exports = pytest.mark.skipif(
    torch.__version__.startswith("2.6"), reason="torch 2.6 refuses to export it"
)


@exports
def test_export_for_any_number_of_images():
    net = network().eval()
    images = {0: torch.export.Dim("images")}
    program = torch.export.export(net, (IMAGES[:2],), dynamic_shapes=(images,))
    for made in (program.module(), torch.jit.trace(net, IMAGES[:2])):
        torch.testing.assert_close(made(IMAGES), net(IMAGES))


@exports
def test_export_in_train_mode_is_an_error():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), MetaDropout(0.5))
    for export in (torch.export.export, torch.jit.trace):
        with pytest.raises(RuntimeError, match=r"call eval\(\)"):
            export(model, (IMAGES,))


# Numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", [PrototypicalNetwork, OriginalMetaNetwork, MAML])
def test_float_dtypes(kind, dtype):
    tasks, losses = sampler(1).sample(2), []
    for model in (learner(kind), learner(kind).to(dtype)):
        kept = {p.dtype for p in model.parameters()}
        losses.append(fit(model, sampler(), 2, 2).losses[0])
        assert evaluate(model, tasks).losses.dtype == "float64"
        assert {p.dtype for p in model.parameters()} == kept
    exact = 1e-4 if dtype == torch.float64 else 0.05
    assert losses[1] == pytest.approx(losses[0], abs=exact)


def test_float16_is_evaluated_and_not_trained():
    model, tasks = learner().half(), sampler().sample(2)
    exact = evaluate(learner(), tasks).losses
    assert evaluate(model, tasks).losses == pytest.approx(exact, abs=0.01)
    with pytest.raises(ValueError, match="float16"):
        fit(model, sampler(), 2, 2)


@pytest.mark.parametrize(
    ("kind", "dtypes"),
    [(PrototypicalNetwork, ("int32", "int8", "uint8", "uint16")), (MAML, ("uint8",))],
)
def test_integer_labels(kind, dtypes):
    tasks, model = sampler().sample(2), learner(kind)
    loss = evaluate(model, tasks).loss
    for dtype in dtypes:
        support_y, query_y = (
            y.to(getattr(torch, dtype)) for y in (tasks.support_y, tasks.query_y)
        )
        other = TaskBatch(tasks.support, support_y, tasks.query, query_y, tasks.classes)
        assert evaluate(model, other).loss == loss, dtype


def ignored(y):  # the label that torch's losses leave out
    return y.clone().index_fill_(1, torch.tensor([2]), -100)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (ignored, "0 to 2, one for each class of the task, got -100 to 2"),
        (lambda y: y + 1, "got 1 to 3"),
        (lambda y: y / 2, "whole numbers"),
        (lambda y: y > 0, "whole numbers, got torch.bool"),
        (lambda y: y[..., None], "one label per query image"),
        (nn.functional.one_hot, "one label per query image"),
        (lambda y: y[:, 1:], "one label per query image"),
    ],
)
def test_labels_that_no_query_can_have(change, told):
    good = sampler().sample(2)
    parts = good.support, good.support_y, good.query, change(good.query_y)
    tasks, model, stream = TaskBatch(*parts, good.classes), learner(), sampler()
    stream.sample = lambda n: tasks
    for use in (
        lambda: evaluate(model, tasks),
        lambda: fit(model, stream, 2, 2),
        lambda: task_accuracies(torch.rand(*good.query_y.shape, 3), tasks.query_y),
    ):
        with pytest.raises(ValueError, match=told):
            use()


@pytest.mark.parametrize("change", [ignored, lambda y: y + 1, lambda y: y > 0])
def test_labels_that_no_support_can_have(change):
    good = sampler().sample(2)
    labels = change(good.support_y)
    with pytest.raises(ValueError, match="labels must"):
        learner()(good.support_x, labels, good.query_x)
    with pytest.raises(ValueError, match="labels must"):
        class_means(torch.rand(*labels.shape, 4), labels, 3)


@pytest.mark.filterwarnings("ignore:this processor")
@pytest.mark.parametrize("kind", [PrototypicalNetwork, MAML])
def test_bfloat16_in_any_chunk(kind):
    trained, tested = [], []
    for chunk in (1, 2, 3):
        model, how = learner(kind), {"chunk": chunk, "bfloat16": True}
        trained.append(fit(model, sampler(), 3, 3, **how).losses[0])
        tested.append(evaluate(model, sampler().sample(3), **how).losses)
    assert trained == pytest.approx([trained[0]] * 3, abs=0.01)
    assert np.allclose(tested, tested[0], atol=0.05)


def test_a_network_without_weights():
    model = PrototypicalNetwork(3, 400, network=nn.Flatten())
    assert evaluate(model, sampler().sample(2)).accuracy > 0.6


# Data in other loops


@pytest.mark.parametrize("workers", [0, 2])
def test_each_task_once(workers):
    loader = DataLoader(
        TaskDataset(sampler(), 5, meta_batch=2), batch_size=None, num_workers=workers
    )
    batches = list(loader)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    drawn = torch.cat([batch.classes for batch in batches])
    assert torch.equal(drawn, sampler().sample(5).classes)


class Stream(IterableDataset):
    def __iter__(self):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            sampler().sample()
        yield str(said[0].message) if said else ""


@pytest.mark.parametrize(("workers", "warned"), [(0, False), (1, False), (2, True)])
def test_workers_that_repeat_each_other_are_warned(workers, warned):
    for said in DataLoader(Stream(), batch_size=None, num_workers=workers):
        assert ("TaskDataset" in said) == warned


def test_a_dataset_leaves_the_sampler_where_it_is():
    tasks = sampler()
    tasks.next_task = 3
    dataset = TaskDataset(tasks, 2)
    assert len(dataset) == 2 and len(list(dataset)) == 2 and tasks.next_task == 3
    for wrong in (-1, 2):
        with pytest.raises(IndexError):
            dataset[wrong]
    with pytest.raises(ValueError, match="at least 1"):
        TaskDataset(tasks, 0)


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_step_where_the_norms_weights_show_no_update(frozen):
    conv, norm = nn.Conv2d(1, 2, 3), TaskBatchNorm(2).requires_grad_(not frozen)
    weights = [*conv.parameters(), *([] if frozen else norm.parameters())]
    optimizer = torch.optim.Adam(weights, fused=True)
    for _ in range(3):
        norm(conv(IMAGES)).square().sum().backward()
        optimizer.step()
    assert norm.eval().num_batches_tracked == 3


@pytest.mark.parametrize("layer", [MetaDropout(0.5), TaskBatchNorm(2)])
def test_data_parallel_is_refused(layer):
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        layer._replicate_for_data_parallel()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (5, 1, 4, 4), (5, 3)])
def test_a_norm_refuses_what_it_has_no_statistics_of(shape, training):
    with pytest.raises(ValueError, match=r"expected images \[B, 3, H, W\]"):
        TaskBatchNorm(3).train(training)(torch.rand(shape))


def test_a_norm_of_another_kind_takes_task_after_task():
    block = network().blocks[1]
    block.norm = nn.GroupNorm(8, 64)
    x = torch.rand(3, 2, 64, 8, 8)
    torch.testing.assert_close(block.normalised(x)[1], block.normalised(x[1]))


@pytest.mark.parametrize("end", [nn.Identity(), nn.Sequential(nn.Linear(64, 5))])
def test_layers_that_were_replaced_or_wrapped(end):
    model = learner(embedding_dim=64 if isinstance(end, nn.Identity) else 5)
    model.network.linear = end
    block = model.network.blocks[1]
    block.conv = nn.Sequential(block.conv)
    fit(model, sampler(), 2)


@pytest.mark.parametrize("arm", ["standard", "meta"])
@pytest.mark.parametrize("randomness", ["error", "different"])
def test_no_mask_for_all_samples_of_a_vmap_unless_it_is_meant(arm, randomness):
    layer, x = MetaDropout(0.5, arm), torch.ones(4, 6, 2, 3, 3)
    with pytest.raises(RuntimeError, match="all samples would get one mask"):
        torch.func.vmap(layer, randomness=randomness)(x)
    masked = torch.func.vmap(layer, randomness="same")(x)
    assert torch.equal(masked, masked[:1].expand_as(masked)) and (masked == 0).any()


@pytest.mark.filterwarnings("ignore:.*quantiz", "ignore:.*reduce_range")
@pytest.mark.parametrize("kind", [PrototypicalNetwork, OriginalMetaNetwork, MAML])
def test_a_quantized_learner_is_tested_right_and_not_trained(kind):
    model, tasks = learner(kind), sampler().sample(20)
    if kind is not MAML:
        fit(model, sampler(), 20, 5)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    if kind is MAML:
        with pytest.raises(ValueError, match="quantize none"):
            evaluate(quantized, tasks)
    else:
        losses = evaluate(model, tasks).losses
        assert np.allclose(evaluate(quantized, tasks).losses, losses, atol=0.05)
    with pytest.raises(ValueError, match="train first, then quantize"):
        fit(quantized, sampler(), 2)


def test_threads_that_test_one_learner_get_what_one_gets():
    model, tasks = learner().train(), [sampler(seed).sample(8) for seed in range(4)]
    alone = [evaluate(model, some).losses for some in tasks]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda some: evaluate(model, some).losses, tasks))
    assert np.array_equal(together, alone) and model.training


def test_frozen_as_a_whole_there_is_nothing_to_train():
    with pytest.raises(ValueError, match="nothing to train"):
        fit(learner().requires_grad_(False), sampler(), 2)
