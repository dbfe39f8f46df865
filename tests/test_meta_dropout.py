"""The layer, and that every check of it fails on a layer that is broken accordingly."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metadropout_nb.meta_dropout import ARMS, MetaDropout, draw_mask, seed_masks, sites

SHAPE = (6, 8, 10, 10)


def started(layer: MetaDropout, task: int | None = None) -> MetaDropout:
    layer.next_task = layer.next_task if task is None else task
    layer.reset_mask(SHAPE, "cpu")
    return layer


def check_applied_in_train_mode(layer):
    x = torch.ones(SHAPE)
    dropped = (started(layer)(x) == 0).float().mean()
    assert abs(dropped - layer.p) < 0.1, "the rate is the rate asked for"


def check_shape_stays(layer):
    x = torch.ones(SHAPE)
    assert started(layer)(x).shape == x.shape


def check_same_task_same_mask(layer):
    x = torch.ones(SHAPE)
    started(layer)
    assert torch.equal(layer(x), layer(x))


def check_support_and_query_share_it(layer):
    started(layer)
    assert torch.equal(
        layer(torch.ones(SHAPE))[:1], layer(torch.ones(3, *SHAPE[1:]), query=True)[:1]
    )


def check_samples_share_it(layer):
    y = started(layer)(torch.ones(SHAPE))
    assert torch.equal(y, y[:1].expand_as(y))


def check_next_task_has_another(layer):
    x = torch.ones(SHAPE)
    assert not torch.equal(started(layer)(x), started(layer)(x))


def check_off_in_eval(layer):
    x = torch.ones(SHAPE)
    assert torch.equal(started(layer).eval()(x), x)


def check_expectation(layer):
    x = torch.ones(SHAPE)
    mean = torch.stack([started(layer)(x)[0] for _ in range(200)]).mean()
    assert abs(mean - 1) < 0.02, (
        "200 tasks of 800 elements: five standard errors are below 0.01"
    )


def check_tasks_of_a_batch_are_apart(layer):
    layer.reset_mask((3, *SHAPE), "cpu")
    together = layer(torch.ones(3, *SHAPE))
    for task in range(3):
        assert torch.equal(started(layer, task)(torch.ones(SHAPE)), together[task])


def check_gradients_masked_alike(layer):
    x = torch.linspace(0.1, 1, 4800).reshape(SHAPE).requires_grad_()
    y = started(layer)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient == 0, layer.mask.expand_as(x) == 0)
    assert (gradient != 0).any() and (gradient == 0).any()


CHECKS = [
    value for name, value in sorted(globals().items()) if name.startswith("check_")
]


class NeverApplied(MetaDropout):
    def forward(self, x, query=False):
        return x


class AppliedInEval(MetaDropout):
    active = True


class NewMaskInEval(MetaDropout):
    def forward(self, x, query=False):
        return super().forward(x, query) if self.training else F.dropout(x, self.p)


class ExtraTaskAxis(MetaDropout):
    def forward(self, x, query=False):
        y = super().forward(x, query)
        return y if y.dim() == 5 else y[None]


class NewMaskEachCall(MetaDropout):
    def forward(self, x, query=False):
        self.reset_mask(x.shape, x.device)
        return super().forward(x, query)


class MaskPerSample(MetaDropout):
    def reset_mask(self, shape, device=None, dtype=None):
        super().reset_mask(shape, device, dtype)
        self.mask = draw_mask(shape, self.p, (self.seed, self.tasks.start, 99))


class Unscaled(MetaDropout):
    def forward(self, x, query=False):
        return super().forward(x, query) * (1 - self.p)


class NeverRenewed(MetaDropout):
    def reset_mask(self, shape, device=None, dtype=None):
        self.next_task = 0
        super().reset_mask(shape, device, dtype)


class MaskWithoutGradient(MetaDropout):
    def forward(self, x, query=False):
        return x + (super().forward(x, query) - x).detach()


class OneMaskForAllTasks(MetaDropout):
    def draw(self, *args, **kwargs):
        mask = super().draw(*args, **kwargs)
        return mask[:1].expand_as(mask)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_meta_dropout_passes(check):
    check(MetaDropout(0.3))


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (NeverApplied, check_applied_in_train_mode),
        (NeverApplied, check_next_task_has_another),
        (AppliedInEval, check_off_in_eval),
        (NewMaskInEval, check_off_in_eval),
        (ExtraTaskAxis, check_shape_stays),
        (NewMaskEachCall, check_same_task_same_mask),
        (NewMaskEachCall, check_support_and_query_share_it),
        (MaskPerSample, check_samples_share_it),
        (Unscaled, check_expectation),
        (NeverRenewed, check_next_task_has_another),
        (MaskWithoutGradient, check_gradients_masked_alike),
        (OneMaskForAllTasks, check_tasks_of_a_batch_are_apart),
    ],
)
def test_broken_layers_are_caught(broken, check):
    with pytest.raises(AssertionError):
        check(broken(0.3))


def test_task_i_mask_never_touches_task_j():
    layer = MetaDropout(0.3)
    layer.reset_mask((3, *SHAPE), "cpu")
    x = torch.linspace(0.1, 1, 3 * 4800).reshape(3, *SHAPE).requires_grad_()
    y = layer(x)
    for i in range(3):
        assert torch.equal(y[i], x[i] * layer.mask[i])
        (gradient,) = torch.autograd.grad(y[i].sum(), x, retain_graph=True)
        assert (gradient[[j for j in range(3) if j != i]] == 0).all()
    assert not torch.equal(layer.mask[0], layer.mask[1])


def test_mask_depends_on_seed_task_and_site():
    reference = started(MetaDropout(0.3, seed=1, site=2), task=7).mask
    assert torch.equal(
        reference, started(MetaDropout(0.3, seed=1, site=2), task=7).mask
    )
    for seed, site, task in ((2, 2, 7), (1, 3, 7), (1, 2, 8)):
        assert not torch.equal(
            reference, started(MetaDropout(0.3, seed=seed, site=site), task=task).mask
        )


def test_whole_channels():
    layer = started(MetaDropout(0.4, whole_channels=True))
    y = layer(torch.ones(SHAPE))
    assert (
        (y.flatten(2).min(2).values == y.flatten(2).max(2).values).all()
        and (y == 0).any()
        and (y > 0).any()
    )


class TestArms:
    x = torch.ones(SHAPE)

    def passes(self, arm):
        layer = started(MetaDropout(0.3, arm))
        return (
            layer(self.x),
            layer(self.x),
            layer(self.x, query=True),
            layer(self.x, query=True),
        )

    def test_separate_holds_one_for_support_and_one_for_query(self):
        support, again, query, query_again = self.passes("separate")
        assert (
            torch.equal(support, again)
            and torch.equal(query, query_again)
            and not torch.equal(support, query)
        )
        assert torch.equal(support, self.passes("meta")[0]), (
            "the support mask is that of the arm 'meta'"
        )

    def test_support_leaves_the_query_clean(self):
        support, again, query, _ = self.passes("support")
        assert torch.equal(support, self.passes("meta")[0]) and torch.equal(
            support, again
        )
        assert torch.equal(query, self.x)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_off_in_eval_and_under_force_eval(arm):
    layer, x = MetaDropout(0.3, arm), torch.ones(SHAPE)
    layer.force_eval = True
    assert torch.equal(started(layer)(x), x)
    layer.force_eval = False
    assert torch.equal(started(layer).eval()(x), x)


def test_drawn_at_first_use_and_never_saved():
    layer = MetaDropout(0.3)
    y = layer(torch.ones(SHAPE))
    assert (y == 0).any() and torch.equal(y, layer(torch.ones(SHAPE)))
    assert layer.tasks == range(1) and not layer.state_dict()


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("lead", [(), (3,)])
def test_masks_drawn_at_first_use_are_those_drawn_ahead(arm, lead):
    shape, query_shape = (*lead, *SHAPE), (*lead, 2, *SHAPE[1:])
    ahead, at_first_use = MetaDropout(0.3, arm), MetaDropout(0.3, arm)
    for _ in range(2):
        ahead.reset_mask(shape)
        at_first_use.start_tasks(*lead)
        assert at_first_use.mask is None and ahead.tasks == at_first_use.tasks
        for query, arrives in ((False, shape), (True, query_shape), (True, shape)):
            x = torch.ones(arrives)
            assert torch.equal(ahead(x, query), at_first_use(x, query))


def test_the_same_task_again():
    layer = MetaDropout(0.3)
    first, following = started(layer).mask, started(layer).mask
    assert layer.next_task == 2 and not torch.equal(first, following)
    layer.next_task = 0
    assert torch.equal(started(layer).mask, first)


def test_a_caller_may_say_once_that_query_samples_come():
    layer, x = started(MetaDropout(0.3, "separate")), torch.ones(SHAPE)
    layer.query = True
    assert torch.equal(layer(x), layer(x, query=True))
    assert not torch.equal(layer(x), layer(x, query=False))


@pytest.mark.parametrize("arm", ["meta", "separate", "support"])
def test_masks_drawn_in_inference_mode_can_be_trained_with(arm):
    layer, weight = MetaDropout(0.3, arm), torch.ones(SHAPE, requires_grad=True)
    with torch.inference_mode():
        layer(torch.ones(SHAPE)), layer(torch.ones(SHAPE), query=True)
    (layer(weight) + layer(weight, query=True)).sum().backward()
    assert len(weight.grad.unique()) > 1


def test_sites_and_seed_masks_of_any_network():
    layers = [MetaDropout(0.3, site=0), MetaDropout(0.3, site=1)]
    network = nn.Sequential(layers[0], nn.ReLU(), nn.Sequential(layers[1]))
    assert sites(network) == layers and sites(nn.ReLU()) == []
    x = torch.ones(SHAPE)
    first = network(x)
    seed_masks(network, 5, next_task=7)
    other = network(x)
    assert not torch.equal(first, other)
    for layer in layers:
        assert layer.seed == 5 and layer.tasks == range(7, 8)
    seed_masks(network, 0)
    assert torch.equal(network(x), first)


def test_a_held_mask_serves_any_dtype():
    layer = started(MetaDropout(0.3))
    assert layer(torch.ones(SHAPE, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_outside_0_1(p):
    with pytest.raises(ValueError, match="dropout rate"):
        MetaDropout(p)


def test_unknown_arm():
    with pytest.raises(ValueError, match="'mete'.*none, standard, meta"):
        MetaDropout(0.1, "mete")


@pytest.mark.parametrize(
    ("started_with", "arrives"),
    [
        (SHAPE, (6, 8, 9, 10)),
        (SHAPE, (6, 4, 10, 10)),
        ((3, *SHAPE), (4, *SHAPE)),
        (SHAPE, (2, *SHAPE)),
    ],
)
def test_a_mask_that_does_not_fit_is_an_error(started_with, arrives):
    layer = MetaDropout(0.3)
    layer.reset_mask(started_with, "cpu")
    before = layer.mask.clone()
    with pytest.raises(ValueError, match="does not fit"):
        layer(torch.ones(arrives))
    assert torch.equal(layer.mask, before), "never redrawn silently"


def test_reset_mask_refuses_other_ranks():
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        MetaDropout(0.3).reset_mask((8, 10, 10))


def test_layers_of_the_same_site_number_are_told_apart():
    net = nn.Sequential(MetaDropout(0.5), MetaDropout(0.5))
    seed_masks(net, 0)
    first, second = (layer(torch.ones(SHAPE)) for layer in net)
    assert not torch.equal(first, second)
