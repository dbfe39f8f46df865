import pytest
import torch

from metadropout_nb.omniglot import Characters
from metadropout_nb.tasks import TaskBatch, TaskSampler


@pytest.fixture(scope="module")
def numbered() -> Characters:
    "Every drawing is one gray value: class times 10 plus drawing."
    values = torch.arange(12)[:, None] * 10 + torch.arange(8)
    return Characters(
        values.to(torch.uint8)[..., None, None].repeat(1, 1, 2, 2),
        tuple(map(str, range(12))),
    )


@pytest.fixture(scope="module")
def many(numbered):
    return TaskSampler(numbered, n_way=5, k_shot=2, n_query=3, seed=3).sample(400)


def test_shapes_types_and_range(many):
    assert many.support_x.shape == (400, 10, 1, 2, 2) and many.query_x.shape == (
        400,
        15,
        1,
        2,
        2,
    )
    assert many.support_y.shape == (400, 10) and many.query_y.shape == (400, 15)
    assert many.support_x.dtype == torch.float32 and many.support_y.dtype == torch.int64
    assert many.query_x.min() >= 0 and many.query_x.max() <= 1


@pytest.mark.parametrize("of", ["label", "place"])
def test_neither_label_nor_place_tells_the_class(numbered, of):
    tasks = TaskSampler(numbered, n_way=5, k_shot=1, n_query=1, seed=0).sample(3000)
    classes = tasks.classes if of == "label" else tasks.support[..., 0, 0].long() // 10
    counts = torch.stack([(classes == c).sum(0) for c in range(12)])
    expected = 3000 / 12
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert chi2 < 100, "55 degrees of freedom: 99.98 % of fair samplers stay below"


def test_place_does_not_tell_the_label(many):
    assert not (many.support_y == many.support_y[0]).all()
    assert (many.query_y[:, 0] == 0).float().mean() < 0.35


def test_equal_seeds_equal_tasks_and_others_not(numbered):
    a, b, c = (
        TaskSampler(numbered, k_shot=1, n_query=2, seed=seed).sample(3)
        for seed in (5, 5, 6)
    )
    assert torch.equal(a.support, b.support) and torch.equal(a.query_y, b.query_y)
    assert not torch.equal(a.classes, c.classes)


def test_more_queries_leave_classes_and_support_as_they_are(numbered):
    few, more = (TaskSampler(numbered, n_query=n, seed=7).sample(20) for n in (2, 5))
    assert torch.equal(few.classes, more.classes)
    assert torch.equal(few.support, more.support)
    assert torch.equal(few.support_y, more.support_y)


def test_one_task_has_no_leading_dimension(many):
    assert many[3].support_x.shape == (10, 1, 2, 2) and many[2:4].query_x.shape == (
        2,
        15,
        1,
        2,
        2,
    )
    assert many.to("cpu").support_y.shape == (400, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_way": 13}, "13-way task needs 13 classes, there are 12"),
        ({"k_shot": 5, "n_query": 4}, "9 different drawings.*there are 8"),
        ({"n_way": 0}, "at least 1"),
        ({"n_query": 0}, "at least 1"),
    ],
)
def test_impossible_tasks(numbered, arguments, message):
    with pytest.raises(ValueError, match=message):
        TaskSampler(numbered, **{"n_way": 5, "k_shot": 1, "n_query": 2} | arguments)


def test_no_tasks_at_all(numbered):
    with pytest.raises(ValueError, match="at least one task"):
        TaskSampler(numbered, n_query=2).sample(0)


def test_images_are_not_divided_by_255_twice(many):
    parts = [many.support.float() / 255, many.support_y, many.query, many.query_y]
    with pytest.raises(ValueError, match=r"must be uint8.*float32"):
        TaskBatch(*parts, many.classes)
