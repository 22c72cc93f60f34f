"""Fill a store with random vectors, and check that an index finds all of them."""

from __future__ import annotations

from pathlib import Path

from brute_force_slots import assert_same_hits, compute_photo_vectors, compute_text_vectors, rank_by_maximum

from engine.index.path_table import FileRecord
from engine.index.photo_table import NewPhoto
from engine.index.store import Store
from engine.vectors.slot_index import SlotIndex


def add_random_photos(store: Store, count: int, seed: int = 0) -> Store:
    """Add photos with random vectors after those of the store; return the store."""
    start = len(store.list_ids())
    vectors_NSE = compute_photo_vectors(count, seed=seed + start)
    root = Path("/photos")
    digests = [f"{start + number:032x}" for number in range(count)]
    files = [FileRecord(root, root / digest, 1, 1, digest) for digest in digests]
    photos = [
        NewPhoto(digest, 1, 1, vectors_SE) for digest, vectors_SE in zip(digests, vectors_NSE, strict=True)
    ]
    store.add(photos, files, [])
    return store


def assert_finds_every_photo(index: SlotIndex, store: Store) -> None:
    """Check that an index holds the photos of a store, and ranks them all as brute force does."""
    ids = store.list_ids()
    assert index.ids.tolist() == ids.tolist()
    texts_ME = compute_text_vectors(1)
    ids_MK, scores_MK = index.search(texts_ME, len(ids))
    expected = rank_by_maximum(ids, store.read_vectors(ids), texts_ME[0], len(ids))
    assert_same_hits((ids_MK[0], scores_MK[0]), expected)


def sum_and_clear(counts: list[int]) -> int:
    """Return the sum of a list and empty the list."""
    total = sum(counts)
    counts.clear()
    return total
