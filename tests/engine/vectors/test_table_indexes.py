"""Indexes follow their table: new rows, another kind, segments, no rows at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from brute_force_slots import KINDS, E, S, assert_same_hits, compute_text_vectors, rank_scores
from vectors_on_disk import add_random_photos, assert_finds_every_photo, sum_and_clear

from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.vectors import table_indexes
from engine.vectors.slot_bounds import merge_maximum
from engine.vectors.table_indexes import open_photo_index, open_text_index


@pytest.mark.parametrize("kind", KINDS)
def test_files_follow_the_table(store: Store, rows_read: list[int], kind: str) -> None:
    assert_finds_every_photo(open_photo_index(store, kind, "cpu"), store)
    assert sum_and_clear(rows_read) == 40
    assert_finds_every_photo(open_photo_index(store, kind, "cpu"), store)
    assert sum_and_clear(rows_read) == 0
    add_random_photos(store, 5)
    assert_finds_every_photo(open_photo_index(store, kind, "cpu"), store)
    assert sum_and_clear(rows_read) == 5
    store.mark_missing([Path("/photos") / f"{3:032x}"])  # hidden by live_ids, not removed
    index = open_photo_index(store, kind, "cpu")
    assert_finds_every_photo(index, store)
    assert 3 not in index.search(compute_text_vectors(1), 45, store.list_live_ids())[0]
    assert sum_and_clear(rows_read) == 0
    store.prune()
    assert_finds_every_photo(open_photo_index(store, kind, "cpu"), store)
    assert sum_and_clear(rows_read) == 44
    assert_finds_every_photo(open_photo_index(Store.open(store.folder), kind, "cpu"), store)


def test_a_new_version_with_the_same_rows_reads_nothing(store: Store, rows_read: list[int]) -> None:
    add_random_photos(store, 5)  # a second fragment
    open_photo_index(store, device="cpu")
    sum_and_clear(rows_read)
    before = store.version
    store._photos.table.compact(0)
    assert store.version > before
    assert_finds_every_photo(open_photo_index(store, device="cpu"), store)
    assert sum_and_clear(rows_read) == 0
    pointer = json.loads((store.folder / "faiss" / "photos" / "current.json").read_bytes())
    assert pointer["version"] == store.version


def test_another_kind_is_built_anew(store: Store, rows_read: list[int]) -> None:
    open_photo_index(store, "fp16", "cpu")
    index = open_photo_index(store, "flat", "cpu")
    assert_finds_every_photo(index, store)
    assert sum_and_clear(rows_read) == 80 and index.kind == "flat"


def test_large_tables_are_built_in_segments(
    store: Store, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_indexes, "_SEGMENT_ROWS", 16)
    small_batches = store.iterate_vectors
    monkeypatch.setattr(store, "iterate_vectors", lambda after_id: small_batches(after_id, 8))
    index = open_photo_index(store, device="cpu")
    assert [len(segment) for segment in index.segments] == [16, 16, 8]
    assert all(segment.frozen for segment in index.segments)
    assert_finds_every_photo(index, store)


def test_an_empty_table(tmp_path: Path) -> None:
    empty = Store.create(tmp_path / "index", Manifest("mini", "aa", 160, "squash", S, E, (3, 5)))
    for _ in range(2):
        assert open_photo_index(empty, device="cpu").search(compute_text_vectors(1), 2)[0].tolist() == [
            [-1, -1]
        ]
        assert len(open_text_index(empty, device="cpu")) == 0
    add_random_photos(empty, 3)
    assert_finds_every_photo(open_photo_index(empty, device="cpu"), empty)


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_finds_texts(store: Store, kind: str) -> None:
    texts = compute_text_vectors(300).astype(np.float16)
    store.texts.add([f"text {n}" for n in range(250)], texts[:250])
    open_text_index(store, kind, "cpu")
    store.texts.add([f"text {n}" for n in range(250, 300)], texts[250:])
    for _ in range(2):
        index = open_text_index(store, kind, "cpu")
        photo = store.read_vectors([4])[0]
        hits = merge_maximum(*index.search(photo, 20), 20)
        scores = (texts.astype(np.float64) @ photo.astype(np.float64).T).max(axis=1)
        assert_same_hits(hits, rank_scores(np.arange(300), scores, 20))
