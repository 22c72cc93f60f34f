"""Pairs are matched once, in any number of calls, and progress is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import SIDE, tiny_model

from engine.evaluation.pair_matching import PairMatcher
from engine.evaluation.retrieval_cache import EvaluationCache
from engine.models.retrieval_model import RetrievalModel
from engine.progress import Progress

CAPTIONS = ["a red dog", "the cat", "snow on the house", "a house", "green"]
PAIRS = np.array([0, 2, 3, 6, 8, 9, 10, 14])  # of 3 photos and 5 captions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RetrievalModel:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def cache(model: RetrievalModel, tmp_path: Path) -> EvaluationCache:
    cache = EvaluationCache(tmp_path, model)
    cache.begin_photos(3)
    pictures = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    patches = model.encode_patches(pictures)
    cache.put_photos(0, np.ones(3, bool), patches, model.encode_photos(patches))
    return cache


def test_each_pair_is_read_once_and_counted(
    model: RetrievalModel, cache: EvaluationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Progress] = []
    first = PairMatcher(model, range(3), CAPTIONS, PAIRS, cache, 2, reports.append)
    assert (reports[0].done, reports[0].total, first.num_kept) == (0, 8, 0)
    first.match_photos(model, [0])
    assert np.isnan(first.logits).tolist() == [False] * 3 + [True] * 5
    first.sync()
    second = PairMatcher(model, range(3), CAPTIONS, PAIRS, cache, 5, reports.append)
    assert (second.num_kept, reports[-1].total) == (3, 5)
    second.match_photos(model, [0, 1, 2])
    assert (reports[-1].done, reports[-1].total) == (5, 5)
    monkeypatch.setattr(RetrievalModel, "match", lambda *_: pytest.fail("all pairs have been read"))
    second.match_photos(model, [0, 1, 2])
    monkeypatch.undo()
    for pair, logit in zip(PAIRS, second.logits, strict=True):
        keys = model.compute_photo_keys(cache.read_patches(int(pair) // 5))
        alone = model.config.match_weight * model.match(keys, [CAPTIONS[pair % 5]])[0, 1]
        assert logit == pytest.approx(alone, abs=1e-4)
