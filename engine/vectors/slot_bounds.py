"""Merge the hit lists of the query slots, and bound the score of what the lists did not show.

Pure functions of arrays, without FAISS: the bounds are what makes the search of `slot_index` exact.
S slots, E embedding, M queries, K hits, F fetched from one list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

NOISE = 1e-5  # between two ways to sum one float32 inner product of unit vectors
Lists = list[list[tuple[np.ndarray, np.ndarray]]]  # view, slot -> (ids_MF, scores_MF)


class SlotView(Protocol):
    """The rows of one set of slots that may be found, with how far their scores may be off."""

    @property
    def count(self) -> int: ...
    @property
    def rounding(self) -> float: ...
    def search(self, slot: int, queries_ME: np.ndarray, fetch: int) -> tuple[np.ndarray, np.ndarray]: ...


def merge_maximum(
    ids_MK: np.ndarray | Sequence[np.ndarray], scores_MK: np.ndarray | Sequence[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merge lists of hits: each id once with its best score; at most k, best first, ties by lower id.

    The exact top k when each list is a top k: photo -> text is one search of the texts for each of the
    photo's vectors. Entries with id -1 are padding. Lists may differ in length.
    """
    ids = np.concatenate([np.ravel(part) for part in ids_MK] or [np.zeros(0, np.int64)])
    scores = np.concatenate([np.ravel(part) for part in scores_MK] or [np.zeros(0, np.float32)])
    ids, scores = ids[ids >= 0], scores[ids >= 0]
    order = np.lexsort((ids, -scores))
    first = np.sort(np.unique(ids[order], return_index=True)[1])[:k]
    return ids[order][first], scores[order][first]


def last_scores(views: Sequence[SlotView], lists: Lists, fetch: int) -> list[np.ndarray]:
    """(S, M) for each view: what a photo that the list did not show scores at most; -inf if it showed all."""
    return [
        np.stack([row_scores[:, -1] for _, row_scores in slots])
        if view.count > fetch
        else np.full((len(slots), len(slots[0][1])), -np.inf, np.float32)
        for view, slots in zip(views, lists, strict=True)
    ]


def mean_bounds_of_shown(
    views: Sequence[SlotView], lists: Lists, last: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What the lists of one query a slot have shown, best bound first: ids_N, and the mean is at most."""
    ids, bounds = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for view, slots, view_last in zip(views, lists, last, strict=True):
        shown = np.unique(np.concatenate([slot_ids[0] for slot_ids, _ in slots]))
        cosines_NS = np.tile(view_last, (len(shown), 1))
        for slot, (slot_ids, slot_scores) in enumerate(slots):
            cosines_NS[np.searchsorted(shown, slot_ids[0]), slot] = slot_scores[0]
        ids.append(shown)
        bounds.append(cosines_NS.mean(axis=1) + view.rounding + NOISE)
    order = np.argsort(-np.concatenate(bounds), kind="stable")
    return np.concatenate(ids)[order], np.concatenate(bounds)[order]


def mean_bound_of_unseen(view: SlotView, last_S: np.ndarray) -> float:
    """What the mean of a photo that no list has shown is at most."""
    return float(last_S.mean()) + view.rounding + NOISE
