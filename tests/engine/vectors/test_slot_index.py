"""Every kind of index finds what brute force finds, ids and scores; bad FAISS files are built again."""

from __future__ import annotations

import numpy as np
import pytest
from brute_force_slots import (
    KINDS,
    E,
    S,
    assert_same_hits,
    compute_photo_vectors,
    compute_text_vectors,
    make_slot_index,
    rank_by_maximum,
    rank_by_mean,
)

from engine.vectors.slot_index import SlotIndex


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_search_is_brute_force(kind: str, device: str, parts: int) -> None:
    photos = compute_photo_vectors(900)
    ids = np.random.default_rng(5).permutation(5000)[:900]
    index = make_slot_index(kind, ids, photos, device, parts)
    queries = compute_text_vectors(6)
    allowed = np.sort(np.random.default_rng(6).permutation(ids)[:500])
    for k in (1, 20, 128):
        for mask in (None, allowed, ids[:3], np.arange(10**6, 10**6 + 5)):
            found_ids, found_scores = index.search(queries, k, mask)
            assert found_ids.shape == found_scores.shape == (6, k)
            for hits, query in zip(zip(found_ids, found_scores, strict=True), queries, strict=True):
                assert_same_hits(hits, rank_by_maximum(ids, photos, query, k, mask))


@pytest.mark.parametrize("kind", KINDS)
def test_search_slots_is_brute_force(kind: str, device: str) -> None:
    photos = compute_photo_vectors(700)
    ids = np.random.default_rng(5).permutation(5000)[:700]
    index = make_slot_index(kind, ids, photos, device, parts=2)
    allowed = np.sort(ids[100:])
    for k in (1, 7, 60, 800):
        for mask in (None, allowed):
            hits = index.search_slots(photos[33], k, mask)
            assert_same_hits(hits, rank_by_mean(ids, photos, photos[33], k, mask))
    assert index.search_slots(photos[33], 5)[0][0] == ids[33]


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_the_lower_id(kind: str, device: str) -> None:
    # sums of powers of two: every way to add them up gives the same float
    photos = np.zeros((300, S, E), np.float16)
    photos[:, :, 0] = 0.5
    photos[::3, 2, 0] = 1.0  # 100 photos share the best score, in the same slot
    photos[7, 1, 0] = 1.0  # and one of them has it in another
    ids = np.random.default_rng(3).permutation(300)
    index = make_slot_index(kind, ids, photos, device, parts=2)
    query = np.zeros((1, E), np.float32)
    query[0, 0] = 1
    for k in (1, 10, 99, 105, 300):
        hits = index.search(query, k)
        assert_same_hits((hits[0][0], hits[1][0]), rank_by_maximum(ids, photos, query[0], k))
    probe = np.zeros((S, E), np.float16)
    probe[:, 0] = 1
    for k in (1, 10, 150):
        assert_same_hits(index.search_slots(probe, k), rank_by_mean(ids, photos, probe, k))


@pytest.mark.parametrize("kind", KINDS)
def test_small_collections(kind: str, device: str) -> None:
    query = compute_text_vectors(2)
    empty = make_slot_index(kind, np.zeros(0, np.int64), compute_photo_vectors(0), device)
    assert len(empty) == 0 and empty.ids.tolist() == []
    ids, scores = empty.search(query, 3)
    assert ids.tolist() == [[-1] * 3] * 2 and (scores == -np.inf).all()
    assert empty.search_slots(compute_photo_vectors(1)[0], 2)[0].tolist() == [-1, -1]
    photos = compute_photo_vectors(3)
    for count in (1, 3):
        numbers = np.array([40, 7, 23])[:count]
        index = make_slot_index(kind, numbers, photos[:count], device)
        for k in (1, 3, 5000):
            hits = index.search(query[:1], k)
            assert_same_hits((hits[0][0], hits[1][0]), rank_by_maximum(numbers, photos[:count], query[0], k))
            assert_same_hits(
                index.search_slots(photos[0], k), rank_by_mean(numbers, photos[:count], photos[0], k)
            )
        assert index.search(query, 0)[0].shape == (2, 0) and index.search_slots(photos[0], 0)[0].shape == (0,)
        assert index.search(query[:0], 4)[0].shape == (0, 4)


def test_rows_added_after_a_search_are_found() -> None:
    photos = compute_photo_vectors(50)
    index = SlotIndex(S, E, "fp16", "cpu")
    index.add(np.arange(20), photos[:20])
    index.search(compute_text_vectors(1), 5)
    index.add(np.arange(20, 50), photos[20:].astype(np.float32))
    query = compute_text_vectors(1)
    hits = index.search(query, 50)
    assert_same_hits((hits[0][0], hits[1][0]), rank_by_maximum(np.arange(50), photos, query[0], 50))
    np.testing.assert_array_equal(index.reconstruct(np.array([49, 3])), photos[[49, 3]].astype(np.float32))


def test_many_queries_are_each_their_own() -> None:
    photos, queries = compute_photo_vectors(80), compute_text_vectors(600)
    hits = make_slot_index("fp16", np.arange(80), photos).search(queries, 5)
    for row in (0, 255, 256, 599):
        want = rank_by_maximum(np.arange(80), photos, queries[row], 5)
        assert_same_hits((hits[0][row], hits[1][row]), want)


def test_what_the_index_is_given_is_checked() -> None:
    with pytest.raises(ValueError, match="'int4'; it must be one of flat, fp16, int8"):
        SlotIndex(S, E, "int4")
    with pytest.raises(ValueError, match="read_vectors is missing"):
        SlotIndex(S, E, "int8")
    with pytest.raises(ValueError, match="must be auto, cpu or gpu"):
        SlotIndex(S, E, device="tpu")
    with pytest.raises(ValueError, match=r"\(3, 8, 32\) for 2 ids"):
        SlotIndex(S, E, device="cpu").add(np.arange(2), compute_photo_vectors(3))
