"""Folders as they are found: what lies about in them, and every kind of picture.

`test_omniglot.py` has the rest of the loader, `test_properties.py` its laws."""

import io
import os
import random
import shutil
import signal
import socket
import struct
import warnings
import weakref
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from test_omniglot import draw, png

from metadropout_nb import omniglot
from metadropout_nb.omniglot import (
    Characters,
    glyphs,
    load_folder,
    load_folders,
    load_omniglot,
    rotate,
)
from metadropout_nb.original_meta_network import OriginalMetaNetwork
from metadropout_nb.tasks import TaskSampler

SPLIT = "images_background"
GRAY = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
SIDE_FILE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(58)
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX's special files")


def store(path: Path, image: Image.Image, kind: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, kind, **options)
    return path


def paper(path: Path) -> np.ndarray:
    "What `load_folder` makes of one file, paper white again."
    loaded = load_folder(path.parent.parent, None)
    assert loaded.images.shape[:2] == (1, 1)
    return 255 - loaded.images[0, 0].numpy()


@pytest.fixture
def signs(tmp_path) -> Path:
    "Three classes of two drawings."
    root = tmp_path / "signs"
    for name in ("a", "b", "set/c"):
        for i in (1, 2):
            draw(root / name / f"{i}.png")
    return root


@contextmanager
def in_time(seconds: int = 10):
    "What hangs is stopped."

    def stop(*_):
        pytest.fail("it hangs")  # which no `except Exception` swallows

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


LEFT_BEHIND = [
    ".ipynb_checkpoints/1.png",
    ".Trash-1000/files/a/1.png",
    "__MACOSX/a/._1.png",
    "a/._1.png",
    "a/.1.png.swp",
    "a/@eaDir/1.png",
    "$RECYCLE.BIN/S-1-5/1.png",
    "System Volume Information/1.png",
    "a/1.png~",
    "a/#1.png#",
    "a/~$1.png",
    "a/Thumbs.db",
    "lost+found/1.png",
]


class TestLeftBehind:
    @pytest.mark.parametrize("name", LEFT_BEHIND)
    def test_it_is_passed_over_without_a_word(self, signs, name):
        (signs / name).parent.mkdir(parents=True, exist_ok=True)
        (signs / name).write_bytes(png())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = load_folder(signs, 20)
        assert loaded.names == ("a", "b", "set/c") and set(loaded.counts) == {2}

    @pytest.mark.filterwarnings("ignore:.*of Omniglot's")
    @pytest.mark.parametrize("zipped", [False, True])
    def test_also_in_omniglot(self, tmp_path, cache, zipped):
        root = tmp_path / "data"
        names = [f"A/character0{c}/{d}.png" for c in (1, 2) for d in (1, 2)]
        content = dict.fromkeys(names, png())
        content |= {f"A/character01/{name}": png() for name in LEFT_BEHIND}
        content |= {f"__MACOSX/{n}/._1.png": SIDE_FILE for n in names}
        content["../outside/c/1.png"] = png()
        for name, one in content.items():
            (root / SPLIT / name).parent.mkdir(parents=True, exist_ok=True)
            (root / SPLIT / name).write_bytes(one)
        if zipped:
            root = tmp_path / "zips"
            root.mkdir()
            with zipfile.ZipFile(root / f"{SPLIT}.zip", "w") as archive:
                for name, one in content.items():
                    archive.writestr(f"{SPLIT}/{name}", one)
        else:
            shutil.rmtree(root / "outside", ignore_errors=True)
        loaded = load_omniglot(root, size=20)
        assert loaded.names == ("A/character01", "A/character02")
        assert loaded.images.shape == (2, 2, 20, 20)

    @pytest.mark.filterwarnings("ignore:.*of Omniglot's")
    def test_a_zip_made_on_windows(self, tmp_path, cache):
        with zipfile.ZipFile(tmp_path / f"{SPLIT}.zip", "w") as archive:
            for c in "ab":
                entry = zipfile.ZipInfo("name")
                entry.filename = f"{SPLIT}\\A\\{c}\\1.PNG"
                archive.writestr(entry, png())
        assert load_omniglot(tmp_path, size=20).names == ("A/a", "A/b")

    def test_a_folder_of_nothing_else_has_no_images(self, tmp_path):
        draw(tmp_path / ".hidden" / "1.png")
        with pytest.raises(ValueError, match="no images"):
            load_folder(tmp_path)

    def test_a_root_that_is_hidden_is_what_was_asked_for(self, signs):
        hidden = signs.rename(signs.with_name(".signs"))
        assert len(load_folder(hidden)) == 3


@posix
class TestLinks:
    def test_to_folders_and_files_are_followed(self, signs, tmp_path):
        draw(tmp_path / "elsewhere" / "d" / "1.png")
        (signs / "more").symlink_to(tmp_path / "elsewhere")
        (signs / "a" / "3.png").symlink_to(tmp_path / "elsewhere" / "d" / "1.png")
        loaded = load_folder(signs, 20)
        assert loaded.names == ("a", "b", "more/d", "set/c")
        assert loaded.counts == (3, 2, 1, 2)

    @pytest.mark.parametrize("target", [".", "..", "../a", "loop", "../set"])
    def test_that_lead_back_add_nothing(self, signs, target):
        (signs / "a" / "loop").symlink_to(target)
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert load_folder(signs, 20).names == ("a", "b", "set/c")

    @pytest.mark.parametrize("link", ["0", "z"])
    def test_a_class_keeps_its_own_name(self, signs, link):
        "Not that of a link, wherever in the alphabet."
        (signs / link).symlink_to(signs / "b")
        assert load_folder(signs, 20).names == ("a", "b", "set/c")

    def test_many_between_many_are_no_trouble(self, tmp_path):
        for i in range(12):
            draw(tmp_path / f"{i:02}" / "1.png")
        for i in range(12):
            for j in range(12):
                (tmp_path / f"{i:02}" / f"to{j}").symlink_to(tmp_path / f"{j:02}")
        with in_time():
            assert len(load_folder(tmp_path, 20)) == 12

    def test_that_lead_nowhere_are_told(self, signs):
        (signs / "d").symlink_to("gone")
        with pytest.warns(UserWarning, match="lead nowhere.*signs/d"):
            assert len(load_folder(signs, 20)) == 3
        (signs / "b" / "3.png").symlink_to("gone.png")
        with pytest.raises(ValueError, match="b/3.png cannot be read"):
            load_folder(signs, 20)

    @pytest.mark.filterwarnings("ignore:.*of Omniglot's")
    def test_a_linked_folder_that_changes_is_noticed(self, tmp_path, cache):
        draw(tmp_path / "elsewhere" / "a" / "1.png")
        (tmp_path / SPLIT).mkdir()
        (tmp_path / SPLIT / "A").symlink_to(tmp_path / "elsewhere")
        assert len(load_omniglot(tmp_path, size=20)) == 1
        draw(tmp_path / "elsewhere" / "b" / "1.png")
        assert load_omniglot(tmp_path, size=20).names == ("A/a", "A/b")


TURNED = {  # what undoes what the tag asks for
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize(
    ("ending", "tag"),
    [*(("png", tag) for tag in TURNED), ("jpg", 6), ("tif", 6), ("webp", 6)],
)
def test_a_picture_stands_as_viewers_show_it(tmp_path, ending, tag):
    upright = Image.fromarray(np.kron(GRAY, np.ones((8, 8), np.uint8)))
    stored = upright.transpose(TURNED[tag]) if TURNED[tag] is not None else upright
    exif = Image.Exif()
    exif[0x0112] = tag
    path = store(tmp_path / "a" / f"1.{ending}", stored, exif=exif, quality=95)
    assert np.abs(paper(path).astype(int) - np.asarray(upright)).mean() < 5


def made(mode: str) -> Image.Image:
    "The gray picture in another mode, nothing lost."
    if mode.startswith("I;16"):
        deep = GRAY.astype(">u2" if mode.endswith("B") else "<u2") * 257
        return Image.fromarray(deep.astype(">u2" if mode.endswith("B") else "<u2"))
    image = Image.fromarray(GRAY)
    if mode == "P":
        image.putpalette([value for value in range(256) for _ in range(3)])
        return image
    return image.convert(mode)


ENDINGS = {
    "L": "png PNG gif GIF tif TIFF bmp BMP pgm tga pcx dib",
    "RGB": "png tif bmp ppm tga pcx sgi qoi",
    "P": "png gif tif bmp pcx",
    "RGBA": "png tif tga qoi",
    "LA": "png tif tga",
    "I;16": "png tif jp2 pgm",
    "I;16B": "tif",
    "CMYK": "tif",
    "YCbCr": "tif",
}


class TestTypes:
    @pytest.mark.parametrize("mode", ENDINGS)
    def test_nothing_is_lost(self, tmp_path, mode):
        if mode == "YCbCr" and PIL.__version__ < "13":
            pytest.skip("Pillow up to 12 does not read such a file")
        for ending in ENDINGS[mode].split():
            path = store(tmp_path / ending / "a" / f"1.{ending}", made(mode))
            assert np.array_equal(paper(path), GRAY), ending

    @pytest.mark.parametrize(
        ("ending", "options"),
        [("webp", {"lossless": True}), ("jp2", {}), ("WEBP", {"lossless": True})],
    )
    def test_newer_ones(self, tmp_path, ending, options):
        path = store(tmp_path / "a" / f"1.{ending}", made("RGB"), **options)
        assert np.array_equal(paper(path), GRAY)

    @pytest.mark.parametrize("ending", ["jpg", "JPEG", "jfif", "avif", "mpo"])
    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    def test_those_that_lose_a_little(self, tmp_path, ending, mode):
        if mode == "CMYK" and ending == "avif":
            mode = "RGBA"
        smooth = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
        image = Image.fromarray(smooth).convert(mode)
        path = store(tmp_path / "a" / f"1.{ending}", image, quality=95)
        assert np.abs(paper(path).astype(int) - smooth).max() < 12

    @pytest.mark.parametrize("ending", ["tif", "bmp", "png", "pbm", "msp"])
    def test_one_bit(self, tmp_path, ending):
        bits = Image.fromarray(np.where(GRAY > 127, 255, 0).astype(np.uint8))
        path = store(tmp_path / "a" / f"1.{ending}", bits.convert("1"))
        assert np.array_equal(paper(path), np.asarray(bits))

    def test_lab(self, tmp_path):
        lab = Image.new("LAB", (8, 8), (255, 128, 128))
        assert paper(store(tmp_path / "a" / "1.tif", lab)).min() > 250

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16"])
    def test_where_it_is_transparent_the_paper_is_white(self, tmp_path, mode):
        image, options = made(mode), {"transparency": 0}
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.fromarray(np.where(GRAY < 99, 0, 255).astype("u1")))
            options = {}
        path = store(tmp_path / "a" / "1.png", image, **options)
        clear = GRAY < 99 if mode in ("RGBA", "LA") else GRAY == 0
        assert np.array_equal(paper(path), np.where(clear, 255, GRAY))

    def test_twelve_bits(self, tmp_path):
        "Pillow writes none: bytes of another width, under a header that says so."
        packed = bytes.fromhex(
            "".join(f"{gray:02x}{gray >> 4:x}" for gray in GRAY.flat)
        )
        path = store(tmp_path / "a" / "1.tif", Image.frombytes("L", (12, 8), packed))
        content = path.read_bytes()
        for tag, kind, was, new in ((256, 4, 12, 8), (258, 3, 8, 12)):
            old, new = (struct.pack("<HHII", tag, kind, 1, n) for n in (was, new))
            assert old in content
            content = content.replace(old, new)
        path.write_bytes(content)
        assert np.array_equal(paper(path), GRAY)

    @pytest.mark.parametrize("mode", ["F", "I", "signed"])
    def test_numbers_without_a_white_are_refused(self, tmp_path, mode):
        signed = mode == "signed"
        image = made("L") if signed else made("L").convert(mode)
        store(tmp_path / "a" / "1.tif", image, tiffinfo={339: 2} if signed else {})
        with pytest.raises(ValueError, match="a/1.tif.*which number is white"):
            load_folder(tmp_path)

    def test_so_are_those_of_a_telescope(self, tmp_path):
        cards = {"SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 8}
        head = "".join(f"{f'{name:8}= {n:>20}':80}" for name, n in cards.items())
        path = tmp_path / "a" / "1.fits"
        path.parent.mkdir()
        path.write_bytes(f"{head}{'END':80}".ljust(2880).encode() + bytes(2880))
        with pytest.raises(ValueError, match="a/1.fits.*which number is white"):
            load_folder(tmp_path)

    def test_its_content_counts_where_the_ending_is_wrong(self, tmp_path):
        path = store(tmp_path / "a" / "1.jpg", made("L"), "PNG")
        assert np.array_equal(paper(path), GRAY)

    def test_of_several_pictures_the_first(self, tmp_path):
        more = {"save_all": True, "append_images": [Image.new("L", (8, 8))]}
        path = store(tmp_path / "a" / "1.gif", made("L"), **more)
        with pytest.warns(UserWarning, match="only the first.*a/1.gif"):
            assert np.array_equal(paper(path), GRAY)


class TestLeftOut:
    @pytest.mark.parametrize("name", ["a/x.svg", "a/x.HEIC", "a/x.eps", "loose.png"])
    def test_is_named(self, signs, name):
        (signs / name).write_bytes(png())
        with pytest.warns(UserWarning, match=f"left out {name}"):
            assert load_folder(signs, 20).names == ("a", "b", "set/c")

    @pytest.mark.parametrize("name", ["a/scan", "a/1.png.1", "b/x.dat"])
    def test_is_known_by_its_first_bytes_too(self, signs, name):
        (signs / name).write_bytes(png())
        (signs / "a" / "notes.txt").write_text("not a drawing")
        with pytest.warns(UserWarning, match=f"left out {name}:"):
            load_folder(signs, 20)

    @pytest.mark.parametrize("name", ["1.heic", "1.svg", "1", "1.cr2"])
    def test_is_an_error_where_a_class_would_vanish(self, signs, name):
        (signs / "d").mkdir()
        (signs / "d" / name).write_bytes(png())
        with pytest.raises(ValueError, match=f"the class d can be read: d/{name}"):
            load_folder(signs, 20)

    def test_only_loose_pictures_are_no_class(self, tmp_path):
        draw(tmp_path / "1.png")
        with pytest.raises(ValueError, match="one folder a class.*not 1.png"):
            load_folder(tmp_path)

    @posix
    def test_names_cannot_command_a_terminal(self, signs):
        (signs / "\x1b[31mred").mkdir()
        (signs / "\x1b[31mred" / "\x1b[2J.png").write_bytes(b"no image")
        with pytest.raises(ValueError) as refused:
            load_folder(signs)
        assert str(refused.value).isprintable()


@posix
class TestWhatIsNoFile:
    def test_a_pipe(self, signs):
        os.mkfifo(signs / "a" / "scan")  # of no image: it is left alone
        with in_time():
            assert len(load_folder(signs)) == 3
        os.mkfifo(signs / "a" / "3.png")
        with in_time(), pytest.raises(ValueError, match="a/3.png.*no plain file"):
            load_folder(signs)

    @pytest.mark.parametrize("device", ["/dev/zero", "/dev/tty", "/dev/stdin"])
    def test_a_device(self, signs, device):
        (signs / "a" / "3.png").symlink_to(device)
        with in_time(), pytest.raises(ValueError, match="a/3.png cannot be read"):
            load_folder(signs)

    def test_a_socket(self, signs, monkeypatch):
        monkeypatch.chdir(signs / "a")  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("3.png")
            with pytest.raises(ValueError, match="a/3.png.*no plain file"):
                load_folder(signs)

    def test_a_file_of_insane_size(self, signs):
        with (signs / "a" / "3.bmp").open("wb") as file:
            file.write(b"BM")
            file.truncate(2**40)
        with in_time(), pytest.raises(ValueError, match="a/3.bmp.*more than 268,435"):
            load_folder(signs)

    @pytest.mark.parametrize("name", [f"{SPLIT}.zip", SPLIT])
    def test_a_pipe_instead_of_omniglot(self, tmp_path, cache, name):
        os.mkfifo(tmp_path / name)
        with in_time(), pytest.raises(ValueError, match=f"{SPLIT}.*no plain file"):
            load_omniglot(tmp_path)

    @pytest.mark.filterwarnings("ignore:.*of Omniglot's")
    def test_a_pipe_instead_of_the_cache(self, tmp_path, cache):
        draw(tmp_path / SPLIT / "A" / "a" / "1.png")
        load_omniglot(tmp_path, size=20)
        (stored,) = cache.iterdir()
        stored.unlink()
        os.mkfifo(stored)
        with in_time(), pytest.warns(UserWarning, match="no plain file"):
            assert len(load_omniglot(tmp_path, size=20)) == 1
        assert stored.is_file()

    def test_a_folder_that_nobody_may_open(self, signs):
        if os.geteuid() == 0:
            pytest.skip("root may open any")
        (signs / "b").chmod(0)
        with pytest.raises(ValueError, match="cannot be read.*b"):
            load_folder(signs)


class TestMemory:
    def test_one_picture_at_a_time(self, tmp_path, monkeypatch):
        "Whatever their size: only what was asked for is kept."
        for i in range(6):
            draw(tmp_path / f"{i}" / "1.png", size=(200, 200))
        alive, decode = [], omniglot._decode

        def watched(*arguments):
            assert sum(large() is not None for large in alive) <= 1
            drawing, pages = decode(*arguments)
            alive.append(weakref.ref(drawing))
            return drawing, pages

        monkeypatch.setattr(omniglot, "_decode", watched)
        load_folder(tmp_path, 8)
        assert len(alive) == 6

    def test_too_many_are_refused_before_the_first(self, signs, monkeypatch):
        monkeypatch.setattr(omniglot, "_decode", lambda *_: pytest.fail("decoded"))
        with pytest.raises(ValueError, match="3 classes of up to 2.*smaller size"):
            load_folder(signs, 100_000)

    @pytest.mark.filterwarnings("ignore:.*of Omniglot's")
    def test_a_picture_too_large_to_decode(self, tmp_path, cache):
        "A few bytes that promise a hundred million pixels."
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.png").write_bytes(png(10_000, 10_000))
        with pytest.raises(ValueError, match="a/1.png.*Bomb"):
            load_folder(tmp_path)

    @pytest.mark.parametrize("load", [load_folder, load_omniglot])
    def test_no_size_at_all(self, signs, load):
        with pytest.raises(ValueError, match="^size must be at least 1, got 0"):
            load(signs, size=0)

    def test_a_zip_whose_pictures_take_hours(self, tmp_path, cache, monkeypatch):
        "Each is small once it is brought to its size."
        monkeypatch.setattr(omniglot, "MOST_BYTES", 2000)
        with zipfile.ZipFile(tmp_path / f"{SPLIT}.zip", "w") as archive:
            for i in range(9):
                archive.writestr(f"{SPLIT}/A/c/{i}.png", png())
        with pytest.raises(ValueError, match="A/c/5.png: there is too much"):
            load_omniglot(tmp_path, size=2)

    def test_one_long_entry_of_a_zip(self, tmp_path, cache, monkeypatch):
        monkeypatch.setattr(omniglot, "MOST_FILE_BYTES", 10**5)
        with zipfile.ZipFile(tmp_path / f"{SPLIT}.zip", "w", 8) as archive:
            archive.writestr(f"{SPLIT}/A/a/1.png", png() + bytes(10**6))
        with pytest.raises(ValueError, match="a/1.png.*more than 100,000"):
            load_omniglot(tmp_path)


@pytest.mark.parametrize("way", ["folder", "omniglot", "environment", "folders"])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, cache, way):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    draw(tmp_path / "d" / SPLIT / "A" / "a" / "1.png")
    draw(tmp_path / "d" / SPLIT / "A" / "b" / "1.png")
    monkeypatch.setenv("METADROPOUT_DATA", "~/d")
    load = {
        "folder": lambda: load_folder("~/d"),
        "omniglot": lambda: load_omniglot("~/d"),
        "environment": lambda: load_omniglot(),
        "folders": lambda: load_folders(Path("~/d"))[0],
    }[way]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load().names[0].endswith("A/a") or way == "folders"


@pytest.fixture
def uneven(tmp_path) -> Characters:
    "Classes of 3, 6 and 4 drawings. The ink of each tells its class and number."
    for c, n in enumerate((3, 6, 4)):
        for d in range(n):
            shade = Image.new("L", (8, 8), 255 - (10 * (c + 1) + d))
            store(tmp_path / "abc"[c] / f"{d}.png", shade)
    return load_folder(tmp_path, None)


class TestUnequalClasses:
    def test_are_used_whole_and_nothing_else(self, uneven):
        assert uneven.counts == (3, 6, 4) and "3 to 6 drawings" in repr(uneven)
        tasks = TaskSampler(uneven, n_way=2, k_shot=1, n_query=2, seed=1).sample(2000)
        shades = torch.cat([tasks.support, tasks.query], 1)[..., 0, 0]
        labels = torch.cat([tasks.support_y, tasks.query_y], 1)
        assert torch.equal(shades.long() // 10 - 1, tasks.classes.gather(1, labels))
        assert all(len(set(task.tolist())) == 6 for task in shades)
        seen, times = shades.unique(return_counts=True)
        assert seen.tolist() == [10, 11, 12, *range(20, 26), *range(30, 34)]
        expected = torch.tensor([1333] * 3 + [667] * 6 + [1000] * 4)
        assert ((times - expected).abs() < 150).all(), "each as often as the others"

    def test_a_class_needs_what_a_task_takes(self, uneven):
        with pytest.raises(ValueError, match="4 different drawings.*there are 3 of a"):
            TaskSampler(uneven, n_way=2, k_shot=1, n_query=3)
        assert TaskSampler(uneven[1:], n_way=2, k_shot=1, n_query=3).sample()

    def test_counts_stay_with_their_classes(self, uneven):
        assert uneven[[2, 0]].counts == (4, 3)
        assert rotate(uneven).counts == 4 * (3, 6, 4)
        assert glyphs(3, 2).counts == (2, 2, 2)
        for wrong in ((1, 2), (1, 2, 7), (0, 1, 2)):
            with pytest.raises(ValueError, match="counts must be 1 to 6"):
                Characters(uneven.images, uneven.names, wrong)

    def test_a_sampler_tells_them_to_a_checkpoint(self, uneven):
        few = {"n_way": 2, "k_shot": 1, "n_query": 1}
        assert TaskSampler(uneven, **few).described()["counts"] == [3, 6, 4]
        assert "counts" not in TaskSampler(glyphs(3, 4), **few).described()

    def test_equal_ones_give_the_tasks_they_always_gave(self):
        shades = torch.arange(12)[:, None] * 10 + torch.arange(8)
        images = shades.to(torch.uint8)[..., None, None]
        characters = Characters(images, tuple(map(str, range(12))))
        tasks = TaskSampler(characters, 3, 2, 2, seed=3).sample(2)
        first, second = tasks.query.flatten(1).tolist()
        assert tasks.classes.tolist() == [[0, 2, 8], [9, 6, 2]]
        assert tasks.support.flatten().tolist()[:6] == [87, 25, 82, 24, 5, 6]
        assert first == [81, 20, 23, 3, 2, 84] and second == [24, 65, 22, 66, 91, 93]

    @pytest.mark.filterwarnings("ignore:.*of Omniglot's")
    def test_omniglot_with_a_drawing_missing_is_incomplete(self, tmp_path, cache):
        for name in ("a/1.png", "a/2.png", "b/1.png"):
            draw(tmp_path / SPLIT / "A" / name)
        with pytest.raises(ValueError, match="incomplete.*as many drawings"):
            load_omniglot(tmp_path)


class TestColor:
    @pytest.fixture
    def colored(self, tmp_path) -> Path:
        rng = np.random.default_rng(1)
        for c in range(4):
            for d in range(3 + c):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                store(tmp_path / f"{c}" / f"{d}.png", Image.fromarray(pixels))
        self.last = pixels
        return tmp_path

    def test_on_request(self, colored):
        loaded = load_folder(colored, None, color=True)
        assert loaded.images.shape == (4, 6, 3, 32, 32) and "3x32x32" in repr(loaded)
        last = 255 - loaded.images[3, 5].permute(1, 2, 0).numpy()
        assert np.array_equal(last, self.last)
        small = load_folder(colored, 16, color=True)
        means = self.last.reshape(16, 2, 16, 2, 3).mean((1, 3))
        kept = 255 - small.images[3, 5].permute(1, 2, 0).numpy().astype(float)
        assert np.abs(kept - means).max() <= 0.5
        assert load_folder(colored, None).images.shape == (4, 6, 32, 32)
        assert loaded.show(2, 2) and rotate(loaded).images.shape[2] == 3

    def test_gray_files_are_gray_in_color(self, tmp_path):
        store(tmp_path / "a" / "1.png", made("I;16"))
        (drawing,) = load_folder(tmp_path, None, color=True).images[0]
        assert all(np.array_equal(255 - channel, GRAY) for channel in drawing)

    def test_a_learner_reads_its_tasks(self, colored):
        characters = load_folder(colored, 28, color=True)
        batch = TaskSampler(characters, 3, 1, 2).sample(2)
        assert batch.support_x.shape == (2, 3, 3, 28, 28)
        assert batch[0].query_x.shape == (6, 3, 28, 28)
        assert torch.equal(batch[0].query_x, batch.query_x[0])
        assert batch[0].show()
        learner = OriginalMetaNetwork(num_classes=3, in_channels=3, image_size=28)
        assert learner.classify(
            learner.embed(batch.support_x),
            batch.support_y,
            learner.embed(batch.query_x, query=True),
        ).shape == (2, 6, 3)


class TestOneFolderOrTwo:
    def test_one_is_split_by_class(self, tmp_path):
        for c in range(10):
            draw(tmp_path / "own" / f"{c}" / "1.png")
        train, test = load_folders(tmp_path / "own", size=20)
        assert (len(train), len(test)) == (7, 3)
        assert sorted(train.names + test.names) == [str(c) for c in range(10)]
        again = load_folders(tmp_path / "own", size=20)
        assert again[1].names == test.names
        with pytest.raises(ValueError, match="10 classes, too few: 6 .* make 12"):
            load_folders(tmp_path / "own", at_least=6)

    def test_two_must_not_share(self, signs, tmp_path):
        draw(tmp_path / "new" / "x" / "1.png")
        train, test = load_folders(signs, tmp_path / "new", size=20)
        assert train.names == ("a", "b", "set/c") and test.names == ("x",)
        for inner in (signs, signs / "a", signs.parent):
            with pytest.raises(ValueError, match="lies in the other"):
                load_folders(signs, inner)
        draw(tmp_path / "new" / "b" / "1.png")
        with pytest.raises(ValueError, match="share the classes b:"):
            load_folders(signs, tmp_path / "new")


KINDS = {"png": "L", "gif": "P", "TIF": "I;16", "bmp": "RGB", "tga": "RGBA"}


@posix
@pytest.mark.parametrize("zipped", [False, True])
def test_any_tree_is_loaded_as_it_is_or_refused_by_name(tmp_path, cache, zipped):
    "Seeded ones, with litter, links and damage."
    for n in range(40):
        rng, root = random.Random(n), tmp_path / f"tree{n}"
        files, counts = {}, {}
        for name in rng.sample(["A/a", "A/b", "B/x.png", "B/ж 1"], rng.randint(1, 4)):
            counts[name] = 2 if zipped else rng.randint(1, 3)
            for d in range(counts[name]):
                ending, into = rng.choice([*KINDS]), io.BytesIO()
                made(KINDS[ending]).save(into, omniglot._type_of(f"x.{ending}"))
                files[f"{name}/{d}.{ending}"] = into.getvalue()
            for litter in rng.sample(LEFT_BEHIND, 3):
                files[f"{name}/{litter}"] = rng.choice([png(), SIDE_FILE, b""])
        damaged = rng.random() < 0.4
        if damaged:
            which = rng.choice([f for f in files if f.split("/")[-1][0].isdigit()])
            files[which] = files[which][: rng.randrange(30)]
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loaded = (load_zip if zipped else load_tree)(root, files)
            except ValueError as error:
                assert damaged and str(root) in str(error)
                continue
        assert dict(zip(loaded.names, loaded.counts, strict=True)) == counts
        assert loaded.names == tuple(sorted(counts))
        for images, count in zip(loaded.images, loaded.counts, strict=True):
            assert damaged or np.array_equal(
                255 - images[:count], np.stack([GRAY] * count)
            )


def load_tree(root: Path, files: dict[str, bytes]) -> Characters:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "A").mkdir(exist_ok=True)
    (root / "A" / "loop").symlink_to(root)
    return load_folder(root, None)


def load_zip(root: Path, files: dict[str, bytes]) -> Characters:
    root.mkdir()
    with zipfile.ZipFile(root / f"{SPLIT}.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{SPLIT}/{name}", content)
    return load_omniglot(root, size=8)


def test_a_class_inside_a_class_is_told(signs):
    draw(signs / "a" / "edited" / "1.png")
    with pytest.warns(UserWarning, match="a/edited: a folder inside a class"):
        assert "a/edited" in load_folder(signs).names


def test_a_zip_of_names_with_a_dot(tmp_path):
    with zipfile.ZipFile(tmp_path / "signs.zip", "w") as archive:
        archive.writestr("./a/1.png", png())
    assert load_folder(tmp_path / "signs.zip").names == ("a",)


def test_sixteen_bits_where_zero_is_white(tmp_path):
    path = store(tmp_path / "a" / "1.tif", made("I;16"), tiffinfo={262: 0})
    assert np.array_equal(paper(path), 255 - GRAY)


@pytest.mark.parametrize("name", ["B", "b ", "e\u0301"])
def test_two_spellings_of_a_class_are_one(signs, tmp_path, name):
    draw(signs / "\u00e9" / "1.png")
    draw(tmp_path / "new" / name / "1.png")
    with pytest.raises(ValueError, match="share the classes"):
        load_folders(signs, tmp_path / "new")


def test_a_split_below_the_top_is_seen(tmp_path):
    for part in ("train", "test"):
        draw(tmp_path / "all" / "set" / part / "a" / "1.png")
    with pytest.raises(ValueError, match="is split already"):
        load_folders(tmp_path / "all")


def test_copies_are_told(tmp_path):
    for folder in ("old/a", "old/b", "new/c"):
        draw(tmp_path / folder / "1.png", value=9 * (folder == "old/b"))
    with pytest.warns(UserWarning, match="too good: 1, in c$"):
        load_folders(tmp_path / "old", tmp_path / "new")
