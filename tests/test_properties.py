"""What must hold for every mask, task, folder and interval, tried on many."""

import math
import struct
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import stats

from metadropout_nb import omniglot
from metadropout_nb.comparison import (
    Interval,
    crossed_interval,
    mean_squares,
    t_interval,
    verdict,
)
from metadropout_nb.meta_dropout import ARMS, MetaDropout
from metadropout_nb.omniglot import Characters, load_folder, load_omniglot
from metadropout_nb.tasks import TaskBatch, TaskSampler

# Chances this small do not come up in a few thousand checks, unless something is wrong.
NEVER = 1e-9


def plausible(hits: int, of: int, chance: float) -> bool:
    "Whether so many hits are what independent draws give."
    return stats.binomtest(int(hits), of, chance).pvalue > NEVER


# --- masks ---

rates = st.floats(0, 0.95)
keys = st.integers(0, 2**63 - 1)


@st.composite
def layers(draw, arms=ARMS, **settings):
    return MetaDropout(
        **{
            "p": draw(rates),
            "dropout": draw(st.sampled_from(arms)),
            "whole_channels": draw(st.booleans()),
            "scaled": draw(st.booleans()),
            "seed": draw(keys),
            "site": draw(st.integers(0, 9)),
        }
        | settings
    )


shapes = st.tuples(*[st.integers(1, 5)] * 4)  # [B, C, H, W]
batches = st.integers(1, 4)
indices = st.integers(0, 2**40)


@given(
    layers(),
    shapes,
    st.none() | batches,
    indices,
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_a_mask_has_the_shape_the_values_and_the_type_that_it_should(
    layer, shape, batch, task, dtype
):
    layer.next_task = task
    layer.reset_mask((batch, *shape) if batch else shape, dtype=dtype)
    held = [n for n in ("mask", "query_mask") if getattr(layer, n) is not None]
    wanted = {
        "meta": ["mask"],
        "support": ["mask"],
        "separate": ["mask", "query_mask"],
    }.get(layer.dropout, [])
    assert held == (wanted if layer.p else [])
    _, channels, height, width = shape
    features = (channels, 1, 1) if layer.whole_channels else (channels, height, width)
    kept = 1 / (1 - layer.p) if layer.scaled else 1.0
    for name in held:
        mask = getattr(layer, name)
        assert (
            mask.shape == ((batch, 1, *features) if batch else (1, *features))
            and mask.dtype == dtype
        )
        size = torch.finfo(dtype).eps * kept
        assert ((mask == 0) | ((mask.double() - kept).abs() <= size)).all()


@settings(max_examples=30)
@given(layers(["meta", "separate", "support"], whole_channels=False), indices)
def test_the_mean_is_one_and_tasks_sites_and_seeds_are_independent(layer, task):
    assume(layer.p > 1e-9)  # of smaller ones SciPy makes an overflow
    shape, kept = (1, 8, 16, 16), 1 / (1 - layer.p) if layer.scaled else 1

    def dropped(**changes):
        other = MetaDropout(
            layer.p,
            layer.dropout,
            False,
            **{"seed": layer.seed, "site": layer.site} | changes,
        )
        other.next_task = task
        other.reset_mask((3, *shape))
        return other.mask == 0

    layer.next_task = task
    layer.reset_mask((3, *shape))
    first = layer.mask == 0
    assert plausible(first.sum(), first.numel(), layer.p)
    error = (
        7 * np.sqrt(layer.p * (1 - layer.p) / first.numel()) + 1 / first.numel()
    )  # binomial
    assert abs(layer.mask.double().mean() / kept - (1 - layer.p)) < error
    pairs = [(first[i], first[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    pairs += [
        (first, dropped(site=layer.site + 1)),
        (first, dropped(seed=layer.seed + 1)),
    ]
    for a, b in pairs:
        assert plausible((a & b).sum(), a.numel(), layer.p**2)


@given(layers(), shapes, batches, indices)
def test_a_batch_has_the_masks_of_its_tasks_one_at_a_time(layer, shape, batch, task):
    def run(layer, x, first, shape):
        layer.next_task = first
        layer.reset_mask(shape)
        return layer(x), layer(x[..., :1, :, :, :], query=True)

    x = torch.linspace(0.1, 1, batch * math.prod(shape)).reshape(batch, *shape)
    whole = run(layer, x, task, x.shape)
    for i in range(batch):
        alone = run(layer, x[i], task + i, shape)
        assert torch.equal(whole[0][i], alone[0]) and torch.equal(whole[1][i], alone[1])


@settings(max_examples=30)
@given(layers(p=0.5, whole_channels=False), indices)
def test_who_shares_a_mask_with_whom(layer, task):
    """Two support and two query samples of one task, and each of them again.

    Equal within groups, independent between them."""
    x = torch.ones(2, 8, 12, 12)
    layer.next_task = task
    layer.reset_mask(x.shape)
    passes = {
        "s": layer(x),
        "q": layer(x, query=True),
        "s'": layer(x),
        "q'": layer(x, query=True),
    }
    seen = {
        f"{name}{i}": samples[i] == 0
        for name, samples in passes.items()
        for i in range(2)
    }
    one, other = ["s0", "s1", "s'0", "s'1"], ["q0", "q1", "q'0", "q'1"]
    groups = {
        "none": [one + other],
        "meta": [one + other],
        "separate": [one, other],
        "support": [one, other],
        "standard": [[name] for name in seen],
    }[layer.dropout]
    clean = {"none": one + other, "support": other}.get(layer.dropout, [])
    for group in groups:
        assert all(torch.equal(seen[group[0]], seen[name]) for name in group)
        assert seen[group[0]].any() == (group[0] not in clean)
        for another in groups:
            if group[0] < another[0] and not {group[0], another[0]} & set(clean):
                assert plausible(
                    (seen[group[0]] & seen[another[0]]).sum(), x[0].numel(), 0.25
                )


# --- tasks ---


def numbered(classes: int, drawings: int) -> Characters:
    "Every image says who it is: one pixel is its class, the other its drawing."
    images = torch.stack(
        torch.meshgrid(torch.arange(classes), torch.arange(drawings), indexing="ij"), -1
    )
    return Characters(
        images.to(torch.uint8).unsqueeze(2), tuple(map(str, range(classes)))
    )


def same(a: TaskBatch, b: TaskBatch) -> bool:
    return all(torch.equal(vars(a)[name], vars(b)[name]) for name in vars(a))


small = st.integers(0, 7)
seeds = st.integers(0, 2**63 - 1)


@given(
    st.integers(1, 9), st.integers(1, 12), small, small, small, seeds, st.integers(1, 5)
)
def test_a_task_is_fair_or_refused(classes, drawings, way, shot, query, seed, n_tasks):
    characters = numbered(classes, drawings)
    if not (
        1 <= way <= classes and shot >= 1 and query >= 1 and shot + query <= drawings
    ):
        with pytest.raises(ValueError, match="need|at least 1"):
            TaskSampler(characters, way, shot, query, seed)
        return
    for task in map(
        TaskSampler(characters, way, shot, query, seed).sample(n_tasks).__getitem__,
        range(n_tasks),
    ):
        assert len(set(task.classes.tolist())) == way == len(task.classes)
        samples = []
        for images, labels, each in (
            (task.support, task.support_y, shot),
            (task.query, task.query_y, query),
        ):
            assert labels.bincount(minlength=way).tolist() == [each] * way
            assert torch.equal(images[:, 0, 0].long(), task.classes[labels]), (
                "the label is that of the drawing's class"
            )
            samples += map(tuple, images[:, 0].tolist())
        assert len(set(samples)) == len(samples) == way * (shot + query), (
            "no drawing twice, nor on both sides"
        )


@given(
    seeds, st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 2**40)
)
def test_task_i_is_the_same_whatever_came_before(seed, parts, first):
    def sampler():
        made = TaskSampler(numbered(9, 6), 3, 2, 2, seed)
        made.next_task = first
        return made

    whole, in_parts = sampler().sample(sum(parts)), sampler()
    done = 0
    for n in parts:
        assert same(in_parts.sample(n), whole[done : done + n])
        done += n
    last = sampler()
    last.next_task += done - 1
    assert same(last.sample(1), whole[done - 1 :])


# --- loaders ---


@dataclass
class File:
    content: bytes
    pixels: np.ndarray | None  # ink high, as it should come back; None: no sound image


def encoded(image: Image.Image, kind: str) -> bytes:
    into = BytesIO()
    image.save(into, kind)
    return into.getvalue()


@st.composite
def files(draw, size):
    "A drawing, mostly of the given size and mostly sound."
    if draw(st.integers(0, 30)) == 0:
        size = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    gray = draw(arrays.arrays(np.uint8, size))
    image = Image.fromarray(gray)
    kind = draw(
        st.sampled_from(
            ["L"] * 8
            + ["RGB", "RGBA", "LA", "P", "1", "I;16", "cut", "text", "empty", "GIF"]
        )
    )
    if kind == "GIF":
        return File(encoded(image, "GIF"), 255 - gray)
    if kind == "I;16":
        deep = Image.fromarray(gray.astype(np.uint16) * 257)
        return File(encoded(deep, "PNG"), 255 - gray)
    if kind in ("cut", "text", "empty"):
        whole = encoded(image, "PNG")
        return File(
            {
                "cut": whole[: draw(st.integers(1, 50))],
                "text": b"no image",
                "empty": b"",
            }[kind],
            None,
        )
    if kind == "P":  # a palette of grays, so that nothing is lost
        image.putpalette([value for value in range(256) for _ in range(3)])
        return File(encoded(image, "PNG"), 255 - gray)
    image = image.convert(kind)
    return File(encoded(image, "PNG"), 255 - np.asarray(image.convert("L")))


names = st.sampled_from(["a", "b", "Ж 1", "a.b", "-", "c.png", "deep/er/x", "deep/y"])


@st.composite
def trees(draw, names=names):
    "Files by their paths: a few classes, mostly of as many drawings."
    size = (side := draw(st.integers(1, 4)), side)
    drawings = draw(st.integers(1, 3))
    tree = {}
    for name in draw(st.lists(names, unique=True, max_size=4)):
        n = draw(st.integers(1, 3)) if draw(st.booleans()) else drawings
        tree |= {
            f"{name}/{i}{draw(st.sampled_from(['.png', '.PNG']))}": draw(files(size))
            for i in range(n)
        }
        if draw(st.booleans()):
            tree[f"{name}/notes.txt"] = File(b"not a drawing", None)
    return tree


def write(tree: dict[str, File], root: Path) -> None:
    for name, file in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(file.content)


def what_it_holds(
    tree: dict[str, File],
    mixed: bool = True,  # whether sizes and numbers may differ
) -> dict[str, list[np.ndarray]] | None:
    "Pixels by class in the order of their names; None where nothing can be loaded."
    drawings = {
        name: file.pixels
        for name, file in tree.items()
        if name.lower().endswith(".png")
    }
    if not drawings or any(pixels is None for pixels in drawings.values()):
        return None
    classes: dict[str, list[np.ndarray]] = {}
    for name, pixels in sorted(drawings.items(), key=lambda item: item[0].split("/")):
        classes.setdefault(name.rpartition("/")[0], []).append(pixels)
    sizes = {max(pixels.shape) for pixels in drawings.values()}
    return classes if mixed or len(sizes) == 1 else None


@settings(max_examples=100)
@given(trees(), st.none() | st.integers(1, 6))
def test_a_folder_is_loaded_or_refused_by_name(tree, size):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "mine"
        write(tree, root)
        holds = what_it_holds(tree, mixed=size is not None)
        if holds is None:
            with pytest.raises((ValueError, FileNotFoundError)) as refused:
                load_folder(root, size)
            assert str(root) in str(refused.value)
            return
        loaded = load_folder(root, size)
    assert loaded.names == tuple(holds)
    counts = tuple(map(len, holds.values()))
    side = size or max(next(iter(holds.values()))[0].shape)
    assert loaded.counts == counts and loaded.images.dtype == torch.uint8
    assert loaded.images.shape == (len(holds), max(counts), side, side)
    for images, pixels in zip(loaded.images, holds.values(), strict=True):
        for image, expected in zip(images, pixels, strict=False):
            if max(expected.shape) == side:  # what is not square lies in the middle
                top, left = ((side - n) // 2 for n in expected.shape)
                paper = np.zeros((side, side), np.uint8)
                paper[top : top + len(expected), left:][:, : expected.shape[1]] = (
                    expected
                )
                assert np.array_equal(image, paper)
        assert not images[len(pixels) :].any()


png = encoded(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)), "PNG")
jpeg = encoded(Image.new("L", (8, 8), 99), "JPEG")
edits = st.lists(
    st.tuples(st.integers(0, 999), st.binary(max_size=4), st.integers(0, 4)),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    for place, inserted, removed in edits:
        place %= len(content) + 1
        content = content[:place] + inserted + content[place + removed :]
    return content


def read_or_refused_by_name(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        write({"a/1.png": File(content, None)}, Path(name))
        try:
            loaded = load_folder(name, 8)
        except ValueError as error:
            assert name in str(error)
        else:
            assert loaded.images.shape == (1, 1, 8, 8)


@settings(max_examples=200)
@given(st.sampled_from([png, jpeg]), edits)
def test_whatever_happened_to_an_image_it_is_read_or_refused_by_name(content, edits):
    read_or_refused_by_name(edited(content, edits))


@settings(max_examples=200)
@given(edits, edits)
def test_nor_does_it_help_that_lengths_and_checksums_are_right(of_header, of_pixels):
    "So that the decoder reads on, and believes in images of any size."
    parts = [edited(png[12:29], of_header), edited(png[37:-16], of_pixels), png[-8:-4]]
    assert [part[:4] for part in (png[12:29], png[37:-16], png[-8:-4])] == [
        b"IHDR",
        b"IDAT",
        b"IEND",
    ]
    chunks = [
        struct.pack(">i", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p))
        for p in parts
    ]
    read_or_refused_by_name(png[:8] + b"".join(chunks))


@pytest.mark.filterwarnings("ignore:.*of Omniglot's")
@given(trees(st.sampled_from(["A/a", "A/b", "A b/a", "B/Ж 1"])))
def test_a_zip_gives_what_its_folder_gives(tree):
    with tempfile.TemporaryDirectory() as name:
        tried = []
        for root in (Path(name) / "tree", Path(name) / "zip"):
            split = root / "images_background"
            if root.name == "tree":
                split.mkdir(parents=True)
                write(tree, split)
            else:
                root.mkdir()
                with zipfile.ZipFile(f"{split}.zip", "w") as archive:
                    for path, file in tree.items():
                        archive.writestr(f"images_background/{path}", file.content)
            with mock.patch.object(
                omniglot, "user_cache_path", lambda _, root=root: root / "cache"
            ):
                try:
                    tried.append(load_omniglot(root, size=4))
                except ValueError as error:
                    assert str(split) in str(error)
                    tried.append(None)
    plain, zipped = tried
    holds = what_it_holds(tree)
    whole = holds is not None and len(set(map(len, holds.values()))) == 1
    assert (plain is not None) == (zipped is not None) == whole
    assert plain is None or (
        plain.names == zipped.names and torch.equal(plain.images, zipped.images)
    )


# --- statistics ---


@st.composite
def matrices(draw):
    sides = st.tuples(st.integers(2, 6), st.integers(2, 6))
    return (
        draw(arrays.arrays(np.float64, sides, elements=st.integers(-1000, 1000))) / 1000
    )


def close(a: Interval, b: Interval, scale: float) -> bool:
    return np.allclose(a, b, rtol=1e-6, atol=1e-7 * (1 + abs(scale)))


by_seeds = st.lists(st.integers(-1000, 1000), min_size=2, max_size=12).map(
    lambda v: np.array(v) / 1000
)
scales = st.floats(0.01, 100) | st.floats(-100, -0.01)
shifts = st.floats(-10, 10)


@given(by_seeds, scales, shifts, st.randoms(use_true_random=False))
def test_the_t_interval_moves_with_its_values(values, scale, shift, random):
    interval = t_interval(values)
    assert (
        interval.low <= values.mean() + 1e-12 and values.mean() - 1e-12 <= interval.high
    )
    moved = Interval(*sorted(scale * np.array(interval) + shift))
    assert close(t_interval(scale * values + shift), moved, scale)
    assert close(
        t_interval(np.array(random.sample(values.tolist(), len(values)))), interval, 1
    )


@given(matrices(), scales, shifts, st.integers(0, 99), st.integers(1, 30))
def test_the_crossed_interval_moves_with_its_matrix(
    matrix, scale, shift, seed, freedom
):
    interval = crossed_interval(matrix)
    assert (
        interval.low <= matrix.mean() + 1e-12 and matrix.mean() - 1e-12 <= interval.high
    )
    _, of_tasks, of_rest = mean_squares(matrix)
    assume(
        abs(of_tasks - of_rest) > 1e-9 * (1 + of_rest)
    )  # at equality rounding decides which formula is used
    moved = Interval(*sorted(scale * np.array(interval) + shift))
    assert close(crossed_interval(scale * matrix + shift), moved, scale)
    rng = np.random.default_rng(seed)
    assert close(
        crossed_interval(rng.permutation(rng.permutation(matrix, axis=0), axis=1)),
        interval,
        1,
    )
    wider = crossed_interval(matrix, freedom)
    assert wider.low <= interval.low + 1e-12 and interval.high <= wider.high + 1e-12
    stacked = crossed_interval(np.stack([matrix, 2 * matrix]))
    assert close(Interval(stacked.low[0], stacked.high[0]), interval, 1), (
        "many at once, each as if alone"
    )


@given(*[st.floats(-1, 1)] * 2)
def test_a_verdict_knows_no_side(a, b):
    low, high = sorted((a, b))
    opposite = {"helps": "hurts", "hurts": "helps"}
    said = verdict(Interval(low, high))
    assert verdict(Interval(-high, -low)) == opposite.get(said, said)
