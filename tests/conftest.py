"""Shared fixtures. Everything is small, seeded and offline; tests of real Omniglot skip where it is not to be had."""

import os
from pathlib import Path

import pytest
import torch

from metadropout_nb import omniglot
from metadropout_nb.omniglot import Characters, glyphs
from metadropout_nb.tasks import TaskBatch, TaskSampler

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


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


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    given = os.environ.get("METADROPOUT_DATA")
    if not given:
        pytest.skip("METADROPOUT_DATA is not set: no real Omniglot")
    if not Path(given).is_dir():
        pytest.fail(f"METADROPOUT_DATA is set to {given}, which is not a folder")
    return Path(given)
