"""Shared fixtures. Everything is small, seeded and offline.

Tests of real Omniglot skip where it is not to be had."""

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pytest
import torch
from hypothesis import settings
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner

from metadropout_nb import cli, long_runs, omniglot
from metadropout_nb.omniglot import Characters, glyphs
from metadropout_nb.runs import TEST_SEED
from metadropout_nb.tasks import TaskBatch, TaskSampler

settings.register_profile(
    "same every time", derandomize=True, database=None, deadline=None, max_examples=60
)
settings.load_profile("same every time")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def characters() -> Characters:
    return glyphs(12, n_drawings=8, size=20)


@pytest.fixture
def tasks(characters) -> TaskBatch:
    return TaskSampler(characters, n_way=3, k_shot=2, n_query=3, seed=1).sample(4)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    "An empty cache folder, and no METADROPOUT_DATA."
    folder = tmp_path / "cache"
    monkeypatch.setattr(omniglot, "user_cache_path", lambda name: folder)
    monkeypatch.delenv("METADROPOUT_DATA", raising=False)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    "The command, in an empty folder."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.console, "width", 140)
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


@contextmanager
def broken_off():
    "In here a training breaks off once its first checkpoint is written."
    save = long_runs.save_checkpoint

    def save_and_break(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(long_runs, "save_checkpoint", save_and_break)
        yield


@contextmanager
def going_on():
    "In here a training that begins at its first task is an error."
    sample = TaskSampler.sample

    def later(sampler, n_tasks=1):
        assert sampler.next_task or sampler.seed == TEST_SEED, "it began again"
        return sample(sampler, n_tasks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskSampler, "sample", later)
        yield


@pytest.fixture
def full_disk():
    "`with full_disk(1000):` a file that would grow beyond 1,000 bytes finds no room."
    resource = pytest.importorskip("resource", reason="limits of file size are POSIX's")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextmanager
    def limited(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def read_only():
    """A folder that everybody may read and nobody may write in.

    Not even root may, who becomes somebody else for the test."""
    if not hasattr(os, "geteuid"):
        pytest.skip("folders cannot be locked by their mode here")
    with (
        tempfile.TemporaryDirectory() as name
    ):  # not `tmp_path`, whose parents are closed to others
        Path(name).chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)
            Path(name).chmod(0o755)


@pytest.fixture(scope="module")
def browser():
    "A real browser without a window: the machine's own Chromium or Chrome."
    path = next(
        filter(
            None,
            map(
                shutil.which,
                ("chromium", "chromium-browser", "google-chrome", "chrome"),
            ),
        ),
        None,
    )
    if path is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    given = os.environ.get("METADROPOUT_DATA")
    if not given:
        pytest.skip("METADROPOUT_DATA is not set: no real Omniglot")
    if not Path(given).is_dir():
        pytest.fail(f"METADROPOUT_DATA is set to {given}, which is not a folder")
    return Path(given)
