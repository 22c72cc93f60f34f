"""Captions are read again when another process has compacted away the version that a reader had."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.index.caption_table import NewCaption
from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.types import Caption

E = 8


def a_caption(photo_id: int) -> NewCaption:
    vector_E = np.random.default_rng(photo_id).standard_normal(E).astype(np.float16)
    return NewCaption(photo_id, f"photo {photo_id}", "painter", "d1", vector_E)


def test_a_reader_goes_on_after_a_compaction(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "index", Manifest("mini", "aa", 160, "squash", 4, E, (3, 5)))
    for photo_id in (3, 1, 4, 1, 5):
        store.captions.put([a_caption(photo_id)])
    readers = [Store.open(store.folder) for _ in range(5)]
    assert store.captions.table is not None
    store.captions.table.compact(0)
    assert readers[0].captions.version < store.captions.version
    assert readers[0].captions.read_captions([1, 2]) == {1: Caption("photo 1", "painter", "d1")}
    assert sorted(readers[1].captions.photos_written_by("d1").tolist()) == [1, 3, 4, 5]
    assert readers[2].captions.count_by_captioner() == {"painter": 4}
    ids, photos = readers[3].captions.list_ids_and_photos()
    assert ids.tolist() == [0, 2, 3, 4] and photos.tolist() == [3, 4, 1, 5]  # 1 was written anew
    want_NE = np.stack([a_caption(photo_id).vector_E for photo_id in (5, 1)])
    np.testing.assert_array_equal(readers[4].captions.read_vectors(ids[[3, 2]]), want_NE)
    assert {reader.captions.version for reader in readers} == {store.captions.version}
