"""Every path is kept once and exactly, whatever its name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from store_rows import ROOT, E, Q, fill_store, make_failure, make_file, make_photo

from engine.index.path_table import FailureRecord, FileRecord
from engine.index.photo_table import NewPhoto
from engine.index.store import Store


def test_a_path_is_replaced_not_doubled(store: Store) -> None:
    fill_store(store, 2)
    changed = FileRecord(ROOT, ROOT / "0.jpg", 5, 6, f"{1:032x}")
    store.add([], [make_file(0), changed])  # of twice the same path, the last
    assert store.read_files() == {ROOT / "0.jpg": changed, ROOT / "1.jpg": make_file(1)}
    assert store.read_photos([0])[0].paths == ()
    assert store.read_photos([1])[0].paths == (ROOT / "0.jpg", ROOT / "1.jpg")
    assert store.list_live_ids().tolist() == [1]


def test_a_path_is_a_file_or_a_failure(store: Store) -> None:
    fill_store(store, 2)
    store.add([], [], [make_failure("0.jpg", "truncated"), make_failure("x.jpg")])
    assert set(store.read_files()) == {ROOT / "1.jpg"} and store.list_live_ids().tolist() == [1]
    store.add([], [], [make_failure("x.jpg", "now another reason")])
    assert store.read_failures()[ROOT / "x.jpg"].reason == "now another reason"
    store.add([], [make_file(0)])
    assert set(store.read_failures()) == {ROOT / "x.jpg"} and store.list_live_ids().tolist() == [0, 1]
    store.remove_failures([ROOT / "x.jpg", ROOT / "never seen.jpg"])
    assert store.read_failures() == {}


STRANGE = [
    "it's.jpg",
    'a "quoted" name.jpg',
    "new\nline.jpg",
    "semi; DROP TABLE files --.jpg",
    "' OR 1=1 --.jpg",
    "back\\slash.jpg",
    "percent%_like.jpg",
    "zürich 東京.jpg",
    os.fsdecode(b"not utf-8 \xff\xfe.jpg"),
    "X'00'.jpg",
    "deep/er/folder/a.jpg",
]


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names_survive_every_operation(store: Store, name: str) -> None:
    fill_store(store, 2)
    strange = make_file(9, name)
    store.add([make_photo(9)], [strange], [])
    assert Store.open(store.folder).read_files()[strange.path] == strange
    photo = store.find_photo(strange.path)
    assert photo is not None and photo.id == 2 and photo.path == strange.path
    store.mark_missing([strange.path])
    assert store.list_live_ids().tolist() == [0, 1] and store.find_photo(strange.path) is None
    assert store.read_files()[strange.path].missing
    store.add([], [], [make_failure(name)])
    assert set(store.read_files()) == {ROOT / "0.jpg", ROOT / "1.jpg"}
    store.remove_failures([strange.path])
    assert store.read_failures() == {}


def test_a_strange_root_and_reason(store: Store) -> None:
    root = Path(os.fsdecode(b"/it's \xff\n/photos"))
    record = FileRecord(root, root / "a.jpg", 1, 2, "d'1")
    photo = NewPhoto("d'1", 1, 1, np.zeros((Q, E), np.float16))
    reason = f"cannot read {os.fsdecode(b'x')}{chr(0xDCFF)}"
    store.add([photo], [record], [FailureRecord(root, root / "b.jpg", 1, 2, reason)])
    assert store.read_files(root) == {root / "a.jpg": record}
    assert store.read_photos([0])[0].paths == (root / "a.jpg",)
    assert store.read_failures(root)[root / "b.jpg"].reason == "cannot read x\\udcff"


def test_roots_that_overlap_hold_a_path_once(store: Store) -> None:
    inner = ROOT / "2024"
    store.add([make_photo(1), make_photo(2)], [make_file(1, "a.jpg", inner), make_file(2, "b.jpg")], [])
    store.add([], [make_file(3, "c.jpg", Path("/photos2"))])
    assert set(store.read_files(ROOT)) == {inner / "a.jpg", ROOT / "b.jpg"}
    assert set(store.read_files(inner)) == {inner / "a.jpg"}
    store.add([], [make_file(1, "2024/a.jpg")])  # the outer root is walked now
    assert store.read_files()[inner / "a.jpg"].root == ROOT and len(store.read_files()) == 3
    assert set(store.read_files(inner)) == {inner / "a.jpg"}
    store.add([], [make_file(1, "a.jpg", inner)])
    assert store.read_files()[inner / "a.jpg"].root == inner and store.num_files == 3
