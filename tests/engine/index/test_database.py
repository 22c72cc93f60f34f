"""The tables below the store: compaction, full disks, lost tables and literals."""

from __future__ import annotations

import numpy as np
import pytest
from store_rows import ROOT, fill_store, make_file, make_photo

from engine.errors import IndexStateError
from engine.index import database
from engine.index.store import Store


def test_compaction_changes_nothing_that_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.index.store.MAX_FRAGMENTS", 3)
    photos = [make_photo(n, bytes([n]) * 500) for n in range(12)]
    for n in range(12):
        store.add([photos[n]], [make_file(n)], [])
    reader = Store.open(store.folder)
    assert reader.list_live_ids().tolist() == list(range(12))
    ids = [11, 0, 5]
    store.optimize()
    assert store._photos.table._handle.stats()["fragment_stats"]["num_fragments"] == 1
    for each in (store, reader, Store.open(store.folder)):  # the reader's version is gone: it reads again
        np.testing.assert_array_equal(each.read_vectors(ids), np.stack([photos[n].vectors_QE for n in ids]))
        assert each.read_patches(ids) == [photos[n].features for n in ids]
        assert set(each.read_files()) == {ROOT / f"{n}.jpg" for n in range(12)}


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("lance error: LanceError(IO): No space left on device (os error 28), src/writer.rs:258"),
    ],
)
def test_a_full_disk_is_said_and_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fill_store(store, 2)

    def full(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store._photos.table._handle, "add", full)
        with pytest.raises(IndexStateError, match=r"is full. Everything committed before is safe"):
            store.add([make_photo(2)], [make_file(2)], [])
    assert store.list_live_ids().tolist() == [0, 1]
    assert set(Store.open(store.folder).read_files()) == {ROOT / "0.jpg", ROOT / "1.jpg"}
    assert store.add([make_photo(2)], [make_file(2)], []) == [2]


def test_other_errors_are_not_dressed_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(store._photos.table._handle, "add", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        store.add([make_photo(2)], [], [])


def test_a_lost_table_is_named(store: Store) -> None:
    (store.folder / "tables" / "files.lance").rename(store.folder / "gone")
    with pytest.raises(IndexStateError, match=r"Table 'files' .* missing or damaged"):
        Store.open(store.folder)


def test_a_literal_cannot_be_left() -> None:
    assert database.quote_bytes(b"'\n\xff") == "X'270aff'"
