"""A store that is filled with random vectors, and whether an index finds all of them."""

from __future__ import annotations

from pathlib import Path

from brute_force_slots import assert_same_hits, compute_photo_vectors, compute_text_vectors, rank_by_maximum

from engine.index.path_table import FileRecord
from engine.index.photo_table import NewPhoto
from engine.index.store import Store
from engine.vectors.slot_index import SlotIndex


def add_random_photos(store: Store, count: int, seed: int = 0) -> Store:
    start = len(store.list_ids())
    new = compute_photo_vectors(count, seed=seed + start)
    root = Path("/photos")
    names = [f"{start + n:032x}" for n in range(count)]
    files = [FileRecord(root, root / name, 1, 1, name) for name in names]
    store.add([NewPhoto(name, 1, 1, vector) for name, vector in zip(names, new, strict=True)], files, [])
    return store


def assert_finds_every_photo(index: SlotIndex, store: Store) -> None:
    ids = store.list_ids()
    assert index.ids.tolist() == ids.tolist()
    photos, query = store.read_vectors(ids), compute_text_vectors(1)
    found = index.search(query, len(ids))
    assert_same_hits((found[0][0], found[1][0]), rank_by_maximum(ids, photos, query[0], len(ids)))


def sum_and_clear(counts: list[int]) -> int:
    total = sum(counts)
    counts.clear()
    return total
