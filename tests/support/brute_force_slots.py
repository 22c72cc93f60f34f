"""Vectors in slots, their nearest by brute force, and an index that behaves as FAISS' on a GPU."""

from __future__ import annotations

import faiss
import numpy as np

from engine.vectors import gpu_slots
from engine.vectors.slot_index import SlotIndex

S, E = 8, 32
KINDS = ["flat", "fp16", "int8"]


def normalise(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def compute_photo_vectors(count: int, seed: int = 0, noise: float = 0.7) -> np.ndarray:
    """Return float16 unit vectors (N, S, E), each a sum of a photo's part, a slot's part and `noise` of its own."""
    rng = np.random.default_rng(seed)
    photo = rng.standard_normal((count, 1, E))
    slot = np.random.default_rng(99).standard_normal((1, S, E))
    return normalise(photo + slot + noise * rng.standard_normal((count, S, E))).astype(np.float16)


def compute_text_vectors(count: int, seed: int = 1) -> np.ndarray:
    return normalise(np.random.default_rng(seed).standard_normal((count, E))).astype(np.float32)


def rank_scores(
    ids: np.ndarray, scores_N: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    keep = np.ones(len(ids), bool) if allowed is None else np.array([i in set(allowed.tolist()) for i in ids])
    ids, scores_N = ids[keep], scores_N[keep]
    best = np.lexsort((ids, -scores_N))[:k]
    padding = k - len(best)
    return np.append(ids[best], [-1] * padding), np.append(scores_N[best], [-np.inf] * padding)


def rank_by_maximum(
    ids: np.ndarray, vectors_NSE: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    return rank_scores(ids, (vectors_NSE.astype(np.float64) @ query).max(axis=1), k, allowed)


def rank_by_mean(
    ids: np.ndarray, vectors_NSE: np.ndarray, photo: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    cosines = np.einsum("nse,se->ns", vectors_NSE.astype(np.float64), photo.astype(np.float64))
    return rank_scores(ids, cosines.mean(axis=1), k, allowed)


def assert_same_hits(hits: tuple[np.ndarray, np.ndarray], want: tuple[np.ndarray, np.ndarray]) -> None:
    assert hits[0].dtype == np.int64 and hits[1].dtype == np.float32
    assert hits[0].tolist() == want[0].astype(int).tolist()
    np.testing.assert_allclose(hits[1], want[1], atol=2e-6)


class FakeGpuIndex:
    """A flat index that behaves as FAISS' on a GPU: half floats, k <= 2048, no selectors."""

    def __init__(self, width: int) -> None:
        self._index = faiss.IndexScalarQuantizer(
            width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )

    def add(self, rows: np.ndarray) -> None:
        self._index.add(rows)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        assert k <= gpu_slots.MAX_HITS
        return self._index.search(queries.astype(np.float16).astype(np.float32), k)


def make_slot_index(
    kind: str, ids: np.ndarray, photos: np.ndarray, device: str = "cpu", parts: int = 1
) -> SlotIndex:
    places = {int(id_): place for place, id_ in enumerate(ids)}

    def read_vectors(wanted: np.ndarray) -> np.ndarray:
        return photos[[places[int(id_)] for id_ in wanted]]

    index = SlotIndex(photos.shape[1], photos.shape[2], kind, device, read_vectors=read_vectors)
    for part in np.array_split(np.arange(len(ids)), parts):
        index.add(ids[part], photos[part])
        if index.segments:
            index.segments[-1].frozen = True  # the next part goes into a segment of its own
    return index
