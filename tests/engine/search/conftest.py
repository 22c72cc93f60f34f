"""Fixtures: the tiny model, and an index of 24 photos for each way of keeping patches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from brute_force_scores import NAMES
from tiny import tiny_model, write_pictures

from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.models.photo_encoder import PhotoEncoder
from engine.models.retrieval_model import RetrievalModel
from engine.search.searcher import Searcher
from indexer.build import build_index


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RetrievalModel:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def shelf(model: RetrievalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make photos and an index of them for each way of keeping patches."""
    folder = tmp_path_factory.mktemp("shelf")
    write_pictures(folder / "photos", NAMES)
    for features in ("store", "int8", "none"):
        store = Store.create(folder / features, Manifest.for_model(model, features))
        build_index([folder / "photos"], store, PhotoEncoder(model, features), workers=0)
        assert store.num_photos == len(NAMES)
    return folder


@pytest.fixture(scope="module")
def searcher(shelf: Path, model: RetrievalModel) -> Searcher:
    """Return a searcher over an index without patches, which reads the files of the photos."""
    return Searcher(Store.open(shelf / "none"), model, hold_bytes=0)


@pytest.fixture
def copied(
    shelf: Path, tmp_path: Path, model: RetrievalModel
) -> Callable[[str], tuple[Searcher, list[Path]]]:
    """Return a function that copies the index of a way of keeping patches, so that a test may damage it."""

    def copy(features: str) -> tuple[Searcher, list[Path]]:
        photos = Path(shutil.copytree(shelf / "photos", tmp_path / "photos"))
        store = Store.create(tmp_path / "index", Manifest.for_model(model, features))
        build_index([photos], store, PhotoEncoder(model, features), workers=0)
        return Searcher(store, model, hold_bytes=0), [photos / name for name in NAMES]

    return copy
