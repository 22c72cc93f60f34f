"""An evaluation finds its stored work again by the version of the protocol; a photo is marked after its values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_model

from engine.evaluation import retrieval_cache
from engine.evaluation.retrieval_cache import EvaluationCache
from engine.models.retrieval_model import RetrievalModel

NUM_PHOTOS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RetrievalModel:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def open_cache(folder: Path, model: RetrievalModel) -> EvaluationCache:
    cache = EvaluationCache(folder, model)
    cache.begin_photos(NUM_PHOTOS)
    return cache


def put_photos(cache: EvaluationCache, model: RetrievalModel, start: int, readable: list[bool]) -> None:
    pictures = np.zeros((sum(readable), model.image_size, model.image_size, 3), np.uint8)
    patches = model.encode_patches(pictures)
    cache.put_photos(start, np.array(readable), patches, model.encode_photos(patches))


def test_another_version_of_the_protocol_does_not_use_the_values_of_an_older_one(
    model: RetrievalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(tmp_path, model)
    put_photos(cache, model, 0, [True] * NUM_PHOTOS)
    cache.sync_photos()
    cache.load_or_compute("texts", lambda: np.ones(3))
    assert open_cache(tmp_path, model).has_photos(0, NUM_PHOTOS)
    monkeypatch.setattr(retrieval_cache, "PROTOCOL_VERSION", retrieval_cache.PROTOCOL_VERSION + 1)
    newer = open_cache(tmp_path, model)
    assert not newer.has_photos(0, 1) and newer.folder != cache.folder
    assert newer.load_or_compute("texts", lambda: np.zeros(3)).tolist() == [0, 0, 0]


def test_a_photo_is_marked_after_its_values_are_on_the_disk(model: RetrievalModel, tmp_path: Path) -> None:
    cache = open_cache(tmp_path, model)
    put_photos(cache, model, 0, [True, False, True])
    assert not open_cache(tmp_path, model).has_photos(0, 1), (
        "a power cut now would leave a mark without values"
    )
    cache.sync_photos()
    reopened = open_cache(tmp_path, model)
    assert reopened.has_photos(0, 3) and not reopened.has_photos(3, 4)
    assert reopened.find_readable().tolist() == [True, False, True, False, False, False]


def test_photos_are_marked_while_the_run_goes_on(
    model: RetrievalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval_cache, "SECONDS_BETWEEN_SYNCS", 0.0)
    put_photos(open_cache(tmp_path, model), model, 0, [True, True])
    assert open_cache(tmp_path, model).has_photos(0, 2)


@pytest.mark.parametrize("name", ["patches.bin", "vectors.bin"])
def test_photos_whose_values_are_gone_are_not_done(model: RetrievalModel, tmp_path: Path, name: str) -> None:
    cache = open_cache(tmp_path, model)
    put_photos(cache, model, 0, [True] * NUM_PHOTOS)
    cache.sync_photos()
    (cache.folder / name).write_bytes(b"cut")
    assert not open_cache(tmp_path, model).has_photos(0, 1)


def test_logits_of_a_file_that_was_cut_are_computed_anew(model: RetrievalModel, tmp_path: Path) -> None:
    cache, pairs = EvaluationCache(tmp_path, model), np.arange(4)
    cache.open_logits(pairs)[:2] = 1.0
    assert cache.open_logits(pairs)[:2].tolist() == [1, 1] and np.isnan(cache.open_logits(pairs)[2:]).all()
    (path,) = cache.folder.glob("logits-*.bin")
    path.write_bytes(path.read_bytes()[:5])
    assert np.isnan(cache.open_logits(pairs)).all()
