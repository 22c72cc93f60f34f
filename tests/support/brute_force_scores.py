"""Compute scores of photos and texts one pair at a time, without an index and without batches.

Tests compare a search with these scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import SIDE

from engine.models.retrieval_model import RetrievalModel
from engine.search.searcher import Searcher
from engine.types import Hit, Results

TEXT = "a red dog in the snow"
NAMES = [f"album {n % 3}/photo {n:02}.png" for n in range(24)]
TEXTS = [
    "a red dog",
    "the cat runs in the snow",
    "a blue house",
    "snow on the house",
    "green",
    "the red house",
]


def read_square(path: Path) -> np.ndarray:
    """Return a photo as the square (SIDE, SIDE, 3) uint8 that the model reads, made with Pillow alone."""
    return np.array(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def match_logits(model: RetrievalModel, path: Path, text: str) -> np.ndarray:
    """Return the ITM logits (2,) of a photo file and a text."""
    ids, mask, _ = model.tokenizer([text])
    return model.net.match(
        model.compute_photo_keys(model.encode_patches(read_square(path)[None])), ids, mask
    ).numpy()[0]


def compute_itc_score(model: RetrievalModel, path: Path, text: str) -> float:
    """Return the ITC score of a photo file and a text: the largest of the cosines of the photo's vectors."""
    photo_QE = model.encode_photos(model.encode_patches(read_square(path)[None]))[0]
    return float((photo_QE @ model.encode_texts([text])[0][0]).max())


def score_stored_photos(searcher: Searcher, text: str) -> dict[int, float]:
    """Return the ITC score of a text with every photo of the index: the photo's id -> its score."""
    assert searcher.store is not None
    ids = searcher.store.list_live_ids()
    text_E = searcher.model.encode_texts([text])[0][0]
    scores = (searcher.store.read_vectors(ids).astype(np.float64) @ text_E).max(axis=1)
    return dict(zip(ids.tolist(), scores.tolist(), strict=True))


def sort_by_score(scores: dict[int, float]) -> list[int]:
    """Return the ids of photos, the best score first, equal scores by id."""
    return sorted(scores, key=lambda id_: (-scores[id_], id_))


def list_photo_ids(results: Results) -> list[int]:
    """Return the ids of the photos that a search returned, in its order."""
    return [hit.photo.id for hit in results.hits]


def assert_well_formed(hits: Sequence) -> None:
    """Check that ranks count from one and that no score is higher than the one before it."""
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert all(first.score >= second.score for first, second in itertools.pairwise(hits))


def assert_reranked(hit: Hit, itc: float, logits: np.ndarray) -> None:
    """Check that a hit holds this ITC score and the ITM probability of these logits (2,)."""
    assert hit.itc == pytest.approx(itc, abs=1e-5)
    assert hit.score == pytest.approx(logits[1] + itc, abs=1e-4)
    assert hit.itm == pytest.approx(np.exp(logits[1]) / np.exp(logits).sum(), abs=1e-4)
