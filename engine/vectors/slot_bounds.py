"""Merge the hit lists of the slots, and bound the scores of photos that the lists did not show.

These are pure functions of arrays, without FAISS; the bounds make the search of `slot_index` exact. Shapes: S slots, E
embedding, M texts, K hits, F hits that are fetched from one list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

NOISE = 1e-5  # Two ways to sum the float32 inner product of unit vectors differ by less than this.
Lists = list[list[tuple[np.ndarray, np.ndarray]]]  # lists[view][slot] is (ids_MF, scores_MF).


class SlotView(Protocol):
    """The rows of one set of slots that may be found.

    count: their number. rounding: how far a score may be from the true one.
    """

    @property
    def count(self) -> int: ...
    @property
    def rounding(self) -> float: ...
    def search(self, slot: int, queries_ME: np.ndarray, fetch: int) -> tuple[np.ndarray, np.ndarray]: ...


def merge_maximum(
    ids_MK: np.ndarray | Sequence[np.ndarray], scores_MK: np.ndarray | Sequence[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merge lists of hits; return at most k ids with their best scores, the best first, ties by the lower id.

    The result is the exact top k when each list is a top k. (To find texts for a photo, the texts are searched once for
    each of the photo's vectors.) Entries with id -1 are padding. Lists may differ in length.
    """
    ids = np.concatenate([np.ravel(part) for part in ids_MK] or [np.zeros(0, np.int64)])
    scores = np.concatenate([np.ravel(part) for part in scores_MK] or [np.zeros(0, np.float32)])
    ids, scores = ids[ids >= 0], scores[ids >= 0]
    order = np.lexsort((ids, -scores))
    first = np.sort(np.unique(ids[order], return_index=True)[1])[:k]
    return ids[order][first], scores[order][first]


def last_scores(views: Sequence[SlotView], lists: Lists, fetch: int) -> list[np.ndarray]:
    """Return for each view the last scores (S, M) of its lists, -inf where a list showed all photos.

    A photo that a list did not show scores at most the last score of that list.
    """
    return [
        np.stack([row_scores[:, -1] for _, row_scores in slots])
        if view.count > fetch
        else np.full((len(slots), len(slots[0][1])), -np.inf, np.float32)
        for view, slots in zip(views, lists, strict=True)
    ]


def mean_bounds_of_shown(
    views: Sequence[SlotView], lists: Lists, last: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (N,) that some list showed, and an upper bound (N,) of each photo's mean score.

    lists: the hits of one vector for each slot. last: from `last_scores`. The ids are ordered by the bound, the largest
    first.
    """
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
    """Return an upper bound of the mean score of every photo that no list has shown."""
    return float(last_S.mean()) + view.rounding + NOISE
