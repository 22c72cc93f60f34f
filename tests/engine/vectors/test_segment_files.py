"""FAISS files that are damaged, copied, half-written or in use are built again or left alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from brute_force_slots import E, S
from vectors_on_disk import add_random_photos, assert_finds_every_photo, sum_and_clear

from engine.index.store import Store
from engine.index.writer_lock import lock_folder
from engine.vectors import segment_files, segments
from engine.vectors.table_indexes import open_photo_index


def newest_file(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[-1]


def flip(path: Path, place: int, *, keep_time: bool = False) -> None:
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "all gone": shutil.rmtree,
    "pointer gone": lambda root: (root / "current.json").unlink(),
    "pointer garbage": lambda root: (root / "current.json").write_bytes(b"\x00\xff garbage"),
    "pointer to nothing": lambda root: (root / "current.json").write_text('{"version": 2}'),
    "segment gone": lambda root: shutil.rmtree(newest_file(root, "*/")),
    "slot gone": lambda root: newest_file(root, "*/slot-03.faiss").unlink(),
    "slot cut": lambda root: cut(newest_file(root, "*/slot-03.faiss"), 500),
    "slot empty": lambda root: cut(newest_file(root, "*/slot-00.faiss"), 0),
    "slot garbage": lambda root: newest_file(root, "*/slot-05.faiss").write_bytes(os.urandom(3000)),
    "one bit in the middle": lambda root: flip(newest_file(root, "*/slot-02.faiss"), 1234),
    "one bit of the header": lambda root: flip(newest_file(root, "*/slot-02.faiss"), 9, keep_time=True),
    "one bit of the first row": lambda root: flip(newest_file(root, "*/slot-02.faiss"), -1, keep_time=True),
    "two slots swapped": lambda root: os.replace(
        newest_file(root, "*/slot-01.faiss"), newest_file(root, "*/slot-06.faiss")
    ),
    "ids cut": lambda root: cut(newest_file(root, "*/ids.npy"), 100),
    "ids garbage": lambda root: newest_file(root, "*/ids.npy").write_bytes(b"garbage"),
    "meta cut": lambda root: cut(newest_file(root, "*/meta.json"), 30),
    "meta empty": lambda root: newest_file(root, "*/meta.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_built_again(store: Store, rows_read: list[int], damage: str) -> None:
    open_photo_index(store, device="cpu")
    assert sum_and_clear(rows_read) == 40
    DAMAGE[damage](store.folder / "faiss" / "photos")
    assert_finds_every_photo(open_photo_index(store, device="cpu"), store)
    assert sum_and_clear(rows_read) == 40
    assert_finds_every_photo(open_photo_index(store, device="cpu"), store)
    assert sum_and_clear(rows_read) == 0


def test_files_that_were_copied_are_good(store: Store, rows_read: list[int]) -> None:
    open_photo_index(store, device="cpu")
    sum_and_clear(rows_read)
    for path in (store.folder / "faiss").rglob("*.faiss"):
        os.utime(path, ns=(0, 0))
    assert_finds_every_photo(open_photo_index(store, device="cpu"), store)
    assert sum_and_clear(rows_read) == 0


def test_files_of_another_index_with_the_same_ids_are_not_used(store: Store, tmp_path: Path) -> None:
    open_photo_index(store, device="cpu")
    shutil.copytree(store.folder / "faiss", tmp_path / "old")
    anew = add_random_photos(Store.create(store.folder, store.manifest, replace=True), 40, seed=500)
    assert not (store.folder / "faiss").exists()
    shutil.copytree(tmp_path / "old", store.folder / "faiss")
    assert anew.version == store.version
    assert_finds_every_photo(open_photo_index(anew, device="cpu"), anew)


def test_a_kill_before_the_pointer_leaves_the_old_files(
    store: Store, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_photo_index(store, device="cpu")
    root = store.folder / "faiss" / "photos"
    add_random_photos(store, 5)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "current.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("engine.atomic.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            open_photo_index(store, device="cpu")
    saved = segment_files.load_segments(root, S, E, "fp16")
    assert saved is not None and [len(segment) for segment in saved.segments] == [40]
    sum_and_clear(rows_read)
    assert_finds_every_photo(open_photo_index(store, device="cpu"), store)
    assert sum_and_clear(rows_read) == 5
    names = set(json.loads((root / "current.json").read_bytes())["segments"])
    assert {path.name for path in root.iterdir() if path.is_dir()} == names, "what was left over is removed"


@pytest.mark.parametrize("error", [RuntimeError("write error: No space left on device"), OSError(28, "full")])
def test_a_full_disk_costs_only_the_files(
    store: Store, rows_read: list[int], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(segments.Segment, "write", full)
        assert_finds_every_photo(open_photo_index(store, device="cpu"), store)
    assert [path.name for path in (store.folder / "faiss" / "photos").iterdir()] == ["lock"]
    assert_finds_every_photo(open_photo_index(store, device="cpu"), store)
    assert sum_and_clear(rows_read) == 80


def test_while_another_process_writes_the_files_they_are_left_alone(store: Store) -> None:
    root = store.folder / "faiss" / "photos"
    root.mkdir(parents=True)
    with lock_folder(root):
        assert_finds_every_photo(open_photo_index(store, device="cpu"), store)
    assert not (root / "current.json").exists()


def test_many_updates_do_not_leave_many_pieces(store: Store, rows_read: list[int]) -> None:
    pieces = []
    for _ in range(12):
        add_random_photos(store, 2)
        index = open_photo_index(store, device="cpu")
        pieces.append(len(index.segments))
    assert_finds_every_photo(index, store)
    assert max(pieces) == 8 and pieces[7:10] == [8, 1, 2]
