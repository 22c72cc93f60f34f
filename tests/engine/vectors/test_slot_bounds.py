"""Slot searches fetch more hits until the best photos are sure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute_force_slots import (
    KINDS,
    assert_same_hits,
    compute_photo_vectors,
    compute_text_vectors,
    make_slot_index,
    rank_by_maximum,
    rank_by_mean,
)

from engine.vectors.slot_bounds import merge_maximum


@pytest.mark.parametrize("kind", KINDS)
def test_search_slots_fetches_more_until_it_is_sure(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.vectors.slot_index._MEAN_FACTOR", 1)
    # slots that hardly agree: the lists show different photos
    photos = compute_photo_vectors(1500, noise=6.0)
    ids = np.arange(1500)
    index = make_slot_index(kind, ids, photos)
    fetched = []
    lists = index._lists

    def counted(views: Any, queries: Any, fetch: int) -> Any:
        fetched.append(fetch)
        return lists(views, queries, fetch)

    monkeypatch.setattr(index, "_lists", counted)
    probe = compute_photo_vectors(1, seed=77, noise=6.0)[0]
    hits = index.search_slots(probe, 4)
    assert len(fetched) >= 3 and fetched[1] == 2 * fetched[0]
    assert_same_hits(hits, rank_by_mean(ids, photos, probe, 4))
    first_round = np.unique(
        np.concatenate(
            [part[0] for part, _ in lists(index._views(None, 20), probe[:, None].astype(np.float32), 20)[0]]
        )
    )
    assert not set(hits[0]) <= set(first_round), "a case that one round settles shows nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_int8_and_others_ask_again_when_the_edge_is_not_sure(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.vectors.slot_index._SPARE", 0)
    monkeypatch.setattr("engine.vectors.slot_index._ROUNDED_FACTOR", 1)
    photos = compute_photo_vectors(600)
    ids = np.arange(600)
    index = make_slot_index(kind, ids, photos)
    for query in compute_text_vectors(10):
        hits = index.search(query[None], 15)
        assert_same_hits((hits[0][0], hits[1][0]), rank_by_maximum(ids, photos, query, 15))


def test_merge_maximum_by_hand() -> None:
    ids = np.array([[4, 2, 9], [2, 7, -1]])
    scores = np.array([[0.9, 0.5, 0.5], [0.8, 0.5, -np.inf]], np.float32)
    for k, want in ((1, [4]), (3, [4, 2, 7]), (9, [4, 2, 7, 9])):
        got_ids, got_scores = merge_maximum(ids, scores, k)
        assert got_ids.tolist() == want
        np.testing.assert_array_equal(got_scores, np.float32([0.9, 0.8, 0.5, 0.5])[: len(want)])
    assert merge_maximum(np.full((2, 3), -1), np.full((2, 3), -np.inf, np.float32), 3)[0].tolist() == []
    assert merge_maximum([np.array([1]), np.array([3, 2])], [np.ones(1), np.ones(2)], 2)[0].tolist() == [1, 2]
