import shutil
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metadropout_nb import omniglot
from metadropout_nb.omniglot import (
    Characters,
    glyphs,
    load_folder,
    load_omniglot,
    resize,
    rotate,
)

SPLIT = "images_background"


def draw(path, size=(20, 20), value=0):
    "White paper with one dark pixel in the corner."
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full(size, 255, np.uint8)
    image[0, 0] = value
    Image.fromarray(image).save(path)


@pytest.fixture
def tree(tmp_path):
    "Two alphabets, three characters, two drawings each, as Omniglot lies on disk."
    root = tmp_path / "data"
    for name in ("A/character01", "A/character02", "B/character01"):
        for drawing in (1, 2):
            draw(root / SPLIT / name / f"{drawing:02}.png")
    return root


@pytest.fixture
def zipped(tree, tmp_path):
    root = tmp_path / "zips"
    root.mkdir()
    with zipfile.ZipFile(root / f"{SPLIT}.zip", "w") as archive:
        for file in sorted(tree.rglob("*.png")):
            archive.write(file, file.relative_to(tree))
    return root


@pytest.mark.filterwarnings("ignore:.*of Omniglot's")
class TestLoadOmniglot:
    def test_plain_tree_torchvision_tree_and_zip_give_the_same(
        self, tree, zipped, cache, tmp_path
    ):
        (tmp_path / "tv").mkdir()
        (tmp_path / "tv" / "omniglot-py").symlink_to(tree)
        loaded = [
            load_omniglot(root, size=20) for root in (tree, zipped, tmp_path / "tv")
        ]
        assert loaded[0].names == ("A/character01", "A/character02", "B/character01")
        assert loaded[0].images.shape == (3, 2, 20, 20)
        assert (
            loaded[0].images[0, 0, 0, 0] == 255 and loaded[0].images.sum() == 6 * 255
        ), "ink is high, paper 0"
        for other in loaded[1:]:
            assert other.names == loaded[0].names and torch.equal(
                other.images, loaded[0].images
            )

    def test_second_load_reads_the_cache(self, zipped, cache, monkeypatch):
        first = load_omniglot(zipped, size=20)
        monkeypatch.setattr(
            omniglot, "_read_zip", lambda *_: pytest.fail("decoded again")
        )
        assert torch.equal(load_omniglot(zipped, size=20).images, first.images)

    def test_a_changed_source_is_decoded_again(self, tree, cache):
        load_omniglot(tree, size=20)
        for drawing in (1, 2):
            draw(tree / SPLIT / "B/character02" / f"{drawing:02}.png")
        assert len(load_omniglot(tree, size=20)) == 4

    def test_corrupt_cache_is_built_again_with_a_warning(self, zipped, cache):
        good = load_omniglot(zipped, size=20)
        (file,) = cache.glob("*.npz")
        for damage in (b"", b"nonsense", file.read_bytes()[:-200]):
            file.write_bytes(damage)
            with pytest.warns(UserWarning, match="damaged"):
                assert torch.equal(load_omniglot(zipped, size=20).images, good.images)

    def test_pickles_in_a_cache_are_not_loaded(self, zipped, cache):
        good = load_omniglot(zipped, size=20)
        (file,) = cache.glob("*.npz")
        np.savez(
            file, images=np.array([{"evil": 1}], dtype=object), names=np.array(["x"])
        )
        with pytest.warns(UserWarning, match="damaged"):
            assert torch.equal(load_omniglot(zipped, size=20).images, good.images)

    def test_truncated_zip(self, zipped, cache):
        file = zipped / f"{SPLIT}.zip"
        file.write_bytes(file.read_bytes()[:-300])
        with pytest.raises(ValueError, match="damaged or incomplete.*glyphs"):
            load_omniglot(zipped, size=20)
        assert not list(cache.glob("*")), "nothing half-written"

    def test_missing_split(self, tree, cache):
        with pytest.raises(
            FileNotFoundError, match="images_evaluation.*METADROPOUT_DATA.*glyphs"
        ):
            load_omniglot(tree, background=False)

    def test_environment_variable(self, tree, cache, monkeypatch):
        monkeypatch.setenv("METADROPOUT_DATA", str(tree))
        assert len(load_omniglot(size=20)) == 3
        monkeypatch.setenv("METADROPOUT_DATA", str(tree / "nowhere"))
        with pytest.raises(FileNotFoundError, match="nowhere"):
            load_omniglot(size=20)

    def test_nothing_there_and_no_download(self, cache):
        with pytest.raises(
            FileNotFoundError, match="download=False.*METADROPOUT_DATA.*glyphs"
        ):
            load_omniglot(download=False)

    def test_download_that_fails_midway_leaves_nothing(self, cache, monkeypatch):
        def fail(root, background, download):
            draw(Path(root) / "omniglot-py" / SPLIT / "A/character01/01.png")
            raise OSError("connection lost")

        monkeypatch.setattr("torchvision.datasets.Omniglot", fail)
        with pytest.raises(
            ConnectionError, match="connection lost.*METADROPOUT_DATA.*glyphs"
        ):
            load_omniglot(size=20)
        assert not list(cache.iterdir())

    def test_download_through_torchvision(self, cache, tree, monkeypatch):
        def fetch(root, background, download):
            shutil.copytree(tree / SPLIT, Path(root) / "omniglot-py" / SPLIT)

        monkeypatch.setattr("torchvision.datasets.Omniglot", fetch)
        assert len(load_omniglot(size=20)) == 3
        monkeypatch.setattr(
            "torchvision.datasets.Omniglot",
            lambda *a, **k: pytest.fail("downloaded twice"),
        )
        assert len(load_omniglot(size=20)) == 3

    def test_two_downloads_at_a_time(self, cache, tree, monkeypatch):
        "The slower one leaves the quicker one's characters alone."

        def fetch(root, background, download):
            shutil.copytree(tree / SPLIT, Path(root) / "omniglot-py" / SPLIT)
            shutil.copytree(tree / SPLIT, cache / SPLIT)

        monkeypatch.setattr("torchvision.datasets.Omniglot", fetch)
        assert len(load_omniglot(size=20)) == len(load_omniglot(size=20)) == 3

    def test_unwritable_cache_is_only_a_warning(self, tree, cache):
        cache.write_text("a file where the folder should be")
        with pytest.warns(UserWarning, match="not cached"):
            assert len(load_omniglot(tree, size=20)) == 3

    def test_a_part_of_omniglot_is_said_to_be_one(self, tree, cache):
        with pytest.warns(UserWarning, match="3 of Omniglot's 964"):
            load_omniglot(tree, size=20)


def png(width=20, height=20) -> bytes:
    "The header says what it is told to, the pixels are those of a blank 20 x 20."

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff" * 20) * 20)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore:.*of Omniglot's")
class TestHostileZips:
    def load(self, folder, *entries):
        folder.mkdir()
        with zipfile.ZipFile(
            folder / f"{SPLIT}.zip", "w", zipfile.ZIP_DEFLATED
        ) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        return load_omniglot(folder, size=20)

    def refused(self, tmp_path, cache, message, *entries):
        with pytest.raises(
            ValueError, match=rf"{SPLIT}\.zip is damaged or incomplete.*{message}"
        ):
            self.load(tmp_path / "source", *entries)
        assert not list(cache.glob("*")), "nothing half-written"

    def test_names_that_climb_out_lead_nowhere(self, tmp_path, cache):
        names = [
            "../../evil.png",
            "/evil.png",
            f"{SPLIT}/A/../../../../evil.png",
            "C:\\evil\\evil.png",
        ]
        with pytest.warns(UserWarning, match="left out /evil.png"):
            self.load(tmp_path / "source", *((name, png()) for name in names))
        assert (
            not list(tmp_path.parent.rglob("evil*")) and not Path("/evil.png").exists()
        )
        assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file())[1:] == [
            f"{SPLIT}.zip"
        ]

    def test_symlinks_are_not_followed(self, tmp_path, cache):
        draw(tmp_path / "secret.png")
        link = zipfile.ZipInfo(f"{SPLIT}/A/c/1.png")
        link.external_attr = 0o120777 << 16
        self.refused(
            tmp_path,
            cache,
            "A/c/1.png cannot be read",
            (link, str(tmp_path / "secret.png")),
        )

    @pytest.mark.parametrize("side", [100_000, 2**31 - 1])
    def test_one_png_of_absurd_size(self, tmp_path, cache, side):
        self.refused(
            tmp_path,
            cache,
            "A/c/1.png cannot be read.*Bomb",
            (f"{SPLIT}/A/c/1.png", png(side, side)),
        )

    def test_many_pngs_that_are_too_much_together(self, tmp_path, cache, monkeypatch):
        "Each could be decoded; none is, since their number is known."
        monkeypatch.setattr(omniglot, "MOST_BYTES", 2000)
        monkeypatch.setattr(omniglot, "_decode", lambda *_: pytest.fail("decoded"))
        entries = [(f"{SPLIT}/A/c/{i}.png", png()) for i in range(9)]
        self.refused(tmp_path, cache, "take 3,600 bytes, more than 2,000", *entries)

    def test_it_is_asked_how_much_it_unpacks_to_before_it_is_unpacked(
        self, tmp_path, cache, monkeypatch
    ):
        monkeypatch.setattr(omniglot, "MOST_BYTES", 10**6)
        monkeypatch.setattr(omniglot, "_decode", lambda *_: pytest.fail("decoded"))
        entry = (f"{SPLIT}/A/c/1.png", png() + bytes(10**6))
        self.refused(tmp_path, cache, "unpacks to more than 1,000,000 bytes", entry)

    def test_other_formats_are_not_tried(self, tmp_path, cache):
        "A decoder of PostScript, say, would start another program."
        head = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n"
        script = head + b"%%EndComments\nshowpage\n"
        self.refused(
            tmp_path,
            cache,
            "A/c/1.png cannot be read.*cannot identify",
            (f"{SPLIT}/A/c/1.png", script),
        )

    @pytest.mark.parametrize(
        "damage",
        [b"", b"not an image", png()[:50], png()[:33] + png()[40:]],
        ids=range(4),
    )
    def test_a_corrupt_image_is_named(self, tmp_path, cache, damage):
        self.refused(
            tmp_path, cache, "A/c/1.png cannot be read", (f"{SPLIT}/A/c/1.png", damage)
        )

    def test_no_damage_to_the_zip_is_another_error(self, tmp_path, cache):
        """Every byte of it in turn.

        What cannot be loaded is refused by name, whatever zipfile makes of it."""
        self.load(tmp_path / "source", (f"{SPLIT}/A/c/1.png", png()))
        whole = (tmp_path / "source" / f"{SPLIT}.zip").read_bytes()
        refused = 0
        for i in range(len(whole)):
            file = tmp_path / f"{i}" / f"{SPLIT}.zip"
            file.parent.mkdir()
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :])
            try:
                load_omniglot(file.parent, size=20)
            except ValueError as error:
                refused += 1
                assert str(file) in str(error)
        assert refused > len(whole) / 2


class TestCache:
    def test_no_damage_to_it_is_an_error(self, tmp_path):
        "Hundreds of damaged ones: each loads as it was, or not at all."
        good = glyphs(2, 2, size=8)
        file = tmp_path / "cache.npz"
        omniglot._save_cached(file, good)
        whole = file.read_bytes()
        found = {True: 0, False: 0}
        rng = np.random.default_rng(0)
        for _ in range(500):
            places, values = rng.integers(len(whole), size=2), rng.integers(256, size=2)
            damaged = bytearray(whole)
            for place, value in zip(places, values, strict=True):
                damaged[place] = value
            file.write_bytes(damaged)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = omniglot._load_cached(file)
            found[loaded is None] += 1
            assert loaded is None or (
                torch.equal(loaded.images, good.images) and loaded.names == good.names
            )
        assert found[True] > 250 and found[False]

    @pytest.mark.parametrize(
        "content",
        [
            {"images": np.zeros((1, 1, 8, 8), np.uint8)},
            {"images": np.zeros((1, 1, 8, 8), np.uint8), "names": np.array(1)},
            {"images": np.zeros((1, 1, 8, 8), np.float32), "names": np.array(["a"])},
            {"images": np.full((1, 1), "a"), "names": np.array(["a"])},
        ],
    )
    def test_other_arrays_are_not_taken_for_characters(self, tmp_path, content):
        np.savez(tmp_path / "cache.npz", **content)
        with pytest.warns(UserWarning, match="cache.npz is damaged"):
            assert omniglot._load_cached(tmp_path / "cache.npz") is None

    @pytest.mark.filterwarnings("ignore:.*of Omniglot's")
    @pytest.mark.parametrize("room", [0, 1000])
    def test_a_full_disk_is_only_a_warning_and_leaves_nothing(
        self, tree, cache, full_disk, room
    ):
        cache.mkdir()
        with full_disk(room), pytest.warns(UserWarning, match="not cached.*too large"):
            loaded = load_omniglot(tree, size=20)
        assert len(loaded) == 3 and not list(cache.iterdir())

    def test_a_full_disk_keeps_what_was_cached_before(self, tmp_path, full_disk):
        file, good = tmp_path / "cache.npz", glyphs(2, 2, size=8)
        omniglot._save_cached(file, good)
        with full_disk(1000), pytest.warns(UserWarning, match="not cached"):
            omniglot._save_cached(file, glyphs(9, 9, size=8))
        assert torch.equal(omniglot._load_cached(file).images, good.images)

    def test_a_folder_that_cannot_be_written(self, read_only):
        with pytest.warns(UserWarning, match="not cached.*Permission denied"):
            omniglot._save_cached(read_only / "cache.npz", glyphs(1, 1, size=8))
        with pytest.raises(PermissionError, match=read_only.name):
            omniglot._download(read_only, background=True)
        assert not list(read_only.iterdir())


def test_real_omniglot(omniglot_root, cache):
    background, evaluation = (
        load_omniglot(omniglot_root, b, size=28) for b in (True, False)
    )
    assert background.images.shape == (964, 20, 28, 28) and evaluation.images.shape == (
        659,
        20,
        28,
        28,
    )
    assert background.images.dtype == torch.uint8
    assert not set(background.names) & set(evaluation.names), (
        "training and test characters are disjoint"
    )
    assert 0.02 < background.images.float().mean() / 255 < 0.2, "ink is high and scarce"


class TestLoadFolder:
    def test_any_depth_and_natural_size(self, tmp_path):
        draw(tmp_path / "one" / "a.png", size=(24, 24))
        draw(tmp_path / "set" / "two" / "a.jpg", size=(24, 24))
        characters = load_folder(tmp_path, size=None)
        assert characters.names == ("one", "set/two") and characters.images.shape == (
            2,
            1,
            24,
            24,
        )
        assert load_folder(tmp_path, size=12).images.shape == (2, 1, 12, 12)

    def test_missing_empty_mixed_and_unreadable(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder"):
            load_folder(tmp_path / "none")
        with pytest.raises(ValueError, match="one folder a class"):
            load_folder(tmp_path)
        draw(tmp_path / "one" / "1.png")
        draw(tmp_path / "two" / "1.png", size=(22, 22))
        with pytest.raises(ValueError, match="mixed sizes.*two/1.png"):
            load_folder(tmp_path, size=None)
        assert load_folder(tmp_path).images.shape == (2, 1, 105, 105)
        (tmp_path / "one" / "2.png").write_text("not an image")
        with pytest.raises(ValueError, match="2.png cannot be read"):
            load_folder(tmp_path)


class TestGlyphs:
    def test_seeded_and_independent_of_their_number(self):
        few, many = glyphs(2, 3, size=20), glyphs(5, 3, size=20)
        assert torch.equal(few.images, many.images[:2])
        assert not torch.equal(few.images, glyphs(2, 3, size=20, seed=1).images)

    def test_drawings_and_classes_differ(self):
        images = glyphs(6, 4, size=28).images.float().flatten(2)
        same = torch.cdist(images, images)
        assert (same + 1e9 * torch.eye(4)).min() > 0, (
            "no two drawings of a class are equal"
        )
        means = images.mean(1)
        assert torch.cdist(means, means)[0, 1:].min() > 100

    def test_bad_numbers(self):
        with pytest.raises(ValueError, match="at least one"):
            glyphs(0)


def test_characters_refuse_what_is_not_a_stack_of_bytes():
    with pytest.raises(ValueError, match="uint8"):
        Characters(torch.zeros(2, 3, 4, 4), ("a", "b"))
    with pytest.raises(ValueError, match="one name each"):
        Characters(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ("a",))


def test_selecting_classes_keeps_names_and_images_together(characters):
    chosen = characters[[3, 1]]
    assert chosen.names == (characters.names[3], characters.names[1])
    assert torch.equal(chosen.images[0], characters.images[3])
    assert len(characters[2:5]) == 3 and len(characters[4]) == 1


def test_resize_is_an_area_average():
    image = torch.tensor(
        [[0, 255, 0, 0], [255, 255, 0, 0], [0, 0, 0, 0], [0, 0, 0, 255]],
        dtype=torch.uint8,
    )
    assert resize(image[None, None], 2)[0, 0].tolist() == [[191, 0], [0, 64]]


def test_rotations_are_classes_of_their_own(characters):
    turned = rotate(characters)
    assert len(turned) == 4 * len(characters) and len(set(turned.names)) == len(turned)
    quarter = turned.images[len(characters)]
    assert torch.equal(torch.rot90(quarter, -1, (-2, -1)), characters.images[0])
