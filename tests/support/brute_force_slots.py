"""Random vectors of photos, their best hits by brute force, and a stand-in for FAISS' index on a GPU.

Shapes: N photos, S slots, E embedding.
"""

from __future__ import annotations

import faiss
import numpy as np

from engine.vectors import gpu_slots
from engine.vectors.slot_index import SlotIndex

S, E = 8, 32
KINDS = ["flat", "fp16", "int8"]


def normalise(values: np.ndarray) -> np.ndarray:
    """Return vectors of length one along the last axis."""
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def compute_photo_vectors(count: int, seed: int = 0, noise: float = 0.7) -> np.ndarray:
    """Return float16 unit vectors (N, S, E), each the sum of a photo's part, a slot's part and a part by itself.

    noise: the length of the part by itself, in standard deviations of the others.
    """
    rng = np.random.default_rng(seed)
    photo_part = rng.standard_normal((count, 1, E))
    slot_part = np.random.default_rng(99).standard_normal((1, S, E))
    return normalise(photo_part + slot_part + noise * rng.standard_normal((count, S, E))).astype(np.float16)


def compute_text_vectors(count: int, seed: int = 1) -> np.ndarray:
    """Return random float32 unit vectors (count, E)."""
    return normalise(np.random.default_rng(seed).standard_normal((count, E))).astype(np.float32)


def rank_scores(
    ids: np.ndarray, scores_N: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (k,) and scores (k,) of the best photos, padded with -1 and -inf; equal scores by id.

    allowed: the ids that may be returned; None allows all.
    """
    is_allowed = np.ones(len(ids), bool) if allowed is None else np.isin(ids, allowed)
    ids, scores_N = ids[is_allowed], scores_N[is_allowed]
    best = np.lexsort((ids, -scores_N))[:k]
    padding = k - len(best)
    return np.append(ids[best], [-1] * padding), np.append(scores_N[best], [-np.inf] * padding)


def rank_by_maximum(
    ids: np.ndarray, vectors_NSE: np.ndarray, text_E: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and scores of the k photos whose best slot is nearest to a text, as `rank_scores` does."""
    return rank_scores(ids, (vectors_NSE.astype(np.float64) @ text_E).max(axis=1), k, allowed)


def rank_by_mean(
    ids: np.ndarray, vectors_NSE: np.ndarray, photo_SE: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and scores of the k photos most similar to a photo: the mean cosine over the slots."""
    cosines_NS = np.einsum("nse,se->ns", vectors_NSE.astype(np.float64), photo_SE.astype(np.float64))
    return rank_scores(ids, cosines_NS.mean(axis=1), k, allowed)


def assert_same_hits(hits: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    """Check that (ids, scores) of a search have the types of FAISS and are equal to the expected ones."""
    assert hits[0].dtype == np.int64 and hits[1].dtype == np.float32
    assert hits[0].tolist() == expected[0].astype(int).tolist()
    np.testing.assert_allclose(hits[1], expected[1], atol=2e-6)


class FakeGpuIndex:
    """A flat index with the limits of FAISS' index on a GPU: half floats, k of at most 2048, no selectors."""

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
    kind: str, ids: np.ndarray, photos_NSE: np.ndarray, device: str = "cpu", parts: int = 1
) -> SlotIndex:
    """Return an index of photos that are added in `parts` segments; ids (N,) belong to photos_NSE."""
    row_of_id = {int(id_): row for row, id_ in enumerate(ids)}

    def read_vectors(ids_to_read: np.ndarray) -> np.ndarray:
        return photos_NSE[[row_of_id[int(id_)] for id_ in ids_to_read]]

    index = SlotIndex(photos_NSE.shape[1], photos_NSE.shape[2], kind, device, read_vectors=read_vectors)
    for rows in np.array_split(np.arange(len(ids)), parts):
        index.add(ids[rows], photos_NSE[rows])
        if index.segments:
            index.segments[-1].frozen = True  # The next part goes into a new segment.
    return index
