"""The store keeps every photo once, every path exactly, and loses nothing that was committed."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from store_rows import ROOT, E, Q, fill_store, make_failure, make_file, make_manifest, make_photo, run_python

from engine.errors import IndexStateError
from engine.index.manifest import Manifest
from engine.index.photo_table import NewPhoto
from engine.index.store import Store


def test_what_is_added_is_read_back(store: Store) -> None:
    assert store.add(
        [make_photo(0), make_photo(1)], [make_file(0), make_file(1)], [make_failure("bad.jpg")]
    ) == [0, 1]
    again = Store.open(store.folder)
    assert again.manifest == make_manifest()
    assert again.map_ids_by_digest() == {f"{0:032x}": 0, f"{1:032x}": 1}
    assert again.read_files() == {ROOT / "0.jpg": make_file(0), ROOT / "1.jpg": make_file(1)}
    assert again.read_failures() == {ROOT / "bad.jpg": make_failure("bad.jpg")}
    first, zero = again.read_photos([1, 0])
    assert (first.id, first.digest, first.width, first.height) == (1, f"{1:032x}", 101, 201)
    assert first.paths == (ROOT / "1.jpg",) and zero.path == ROOT / "0.jpg"
    assert (again.num_photos, again.num_files, again.texts.count()) == (2, 2, 0)
    assert again.measure_disk_bytes() >= 2 * Q * E * 2


def test_a_digest_is_added_once_and_keeps_all_its_paths(store: Store) -> None:
    first = store.add([make_photo(3), make_photo(4), make_photo(3)], [make_file(3), make_file(4)], [])
    assert first == [0, 1, 0]
    assert store.add([make_photo(5), make_photo(4)], [make_file(4, "copy.jpg"), make_file(5)], []) == [2, 1]
    assert store.num_photos == 3 and len(store.map_ids_by_digest()) == 3
    assert store.read_photos([1])[0].paths == (ROOT / "4.jpg", ROOT / "copy.jpg")


def test_ten_thousand_paths_are_one_commit(store: Store) -> None:
    files = [make_file(n) for n in range(10_000)]
    store.add([], files)
    before = store._files.table.version
    store.mark_missing([file.path for file in files])
    assert store._files.table.version == before + 1 and store.num_files == 0
    store.add([], files)
    assert store._files.table.version == before + 2 and store.num_files == 10_000


def test_vectors_and_features_come_in_the_order_asked(store: Store) -> None:
    photos = [make_photo(n, os.urandom(3000 + n) if n % 3 else None) for n in range(40)]
    for start in range(0, 40, 10):  # four fragments
        store.add(photos[start : start + 10], [], [])
    ids = [*np.random.default_rng(0).permutation(40)[:25].tolist(), 7, 7]
    for each in (store, Store.open(store.folder)):
        vectors = each.read_vectors(ids)
        assert vectors.dtype == np.float16
        np.testing.assert_array_equal(vectors, np.stack([photos[n].vectors_QE for n in ids]))
        assert each.read_patches(ids) == [photos[n].features for n in ids]
    assert (
        store.read_vectors([]).shape == (0, Q, E)
        and store.read_patches([]) == []
        and store.read_photos([]) == []
    )


def test_all_vectors_stream_in_id_order(store: Store) -> None:
    for start in range(0, 30, 10):
        filled_part = [make_photo(n) for n in range(start, start + 10)]
        store.add(filled_part, [make_file(n) for n in range(start, start + 10)], [])
    store.mark_missing([ROOT / "4.jpg", ROOT / "12.jpg"])
    store.prune()
    parts = list(store.iterate_vectors(after_id=2, batch=7))
    ids = np.concatenate([part for part, _ in parts])
    assert ids.tolist() == [n for n in range(3, 30) if n not in (4, 12)]
    assert max(len(part) for part, _ in parts) == 7
    want = np.stack([make_photo(int(n)).vectors_QE for n in ids])
    np.testing.assert_array_equal(np.concatenate([vectors for _, vectors in parts]), want)


@pytest.mark.parametrize(("times_the_photos", "num_fragments"), [(1.1, 12), (1.3, 1)])
def test_photos_are_compacted_where_a_copy_of_them_fits(
    store: Store, monkeypatch: pytest.MonkeyPatch, times_the_photos: float, num_fragments: int
) -> None:
    """Compaction copies only the table of photos; thumbnails and FAISS files in the same folder need no room."""
    monkeypatch.setattr("engine.index.store.MAX_FRAGMENTS", 3)
    for n in range(12):
        store.add([make_photo(n, bytes([n]) * 500)], [make_file(n)], [])
    photos = store.folder / "tables" / "photos.lance"
    num_bytes = sum(path.stat().st_size for path in photos.rglob("*") if path.is_file())
    (store.folder / "thumbnails").write_bytes(bytes(10 * num_bytes))
    free = int(times_the_photos * num_bytes)
    monkeypatch.setattr("engine.index.store.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    store.optimize()
    assert store._photos.table._handle.stats()["fragment_stats"]["num_fragments"] == num_fragments


def test_the_version_follows_the_photos(store: Store) -> None:
    versions = [store.version]
    fill_store(store, 2)
    versions.append(store.version)
    store.add([make_photo(8)], [make_file(8)], [])
    versions.append(store.version)
    store.mark_missing([ROOT / "0.jpg"])
    store.prune()
    versions.append(store.version)
    assert versions == sorted(set(versions))
    texts = store.texts.version
    store.texts.add(["a"], np.ones((1, E)))
    assert store.version == versions[-1] and store.texts.version > texts


def test_vectors_of_another_shape_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"\(2, 8\), but the index keeps \(4, 8\)"):
        store.add([NewPhoto("a", 1, 1, np.zeros((2, E), np.float16))], [], [])


def test_a_fresh_process_reads_it(store: Store) -> None:
    fill_store(store, 3)
    done = run_python(
        """
        import sys
        from pathlib import Path
        from engine.index.store import Store
        store = Store.open(Path(sys.argv[1]))
        print(store.list_live_ids().tolist(), store.read_photos([2])[0].path, store.read_vectors([1]).tolist())
        """,
        store.folder,
    )
    assert done.stdout.strip() == f"[0, 1, 2] /photos/2.jpg {make_photo(1).vectors_QE[None].tolist()}", (
        done.stderr
    )


def test_a_kill_between_the_commits_leaves_no_file_without_its_photo(store: Store) -> None:
    fill_store(store, 2)
    done = run_python(
        """
        import os, sys
        from pathlib import Path
        from engine.index.store import Store
        from tests.support.store_rows import make_file, make_photo
        store = Store.open(Path(sys.argv[1]))
        store._files.put = lambda records: os._exit(9)
        store.add([make_photo(5)], [make_file(5)], [])
        """,
        store.folder,
    )
    assert done.returncode == 9, done.stderr
    again = Store.open(store.folder)  # the dead writer's lock is free
    assert set(again.read_files()) == {ROOT / "0.jpg", ROOT / "1.jpg"}
    assert again.map_ids_by_digest()[f"{5:032x}"] == 2 and again.list_live_ids().tolist() == [0, 1]
    assert again.add([make_photo(5)], [make_file(5)], []) == [2]  # taken up, not encoded and added again
    assert again.list_live_ids().tolist() == [0, 1, 2]


def test_a_store_sees_others_writes_after_refresh_and_before_its_own(store: Store) -> None:
    fill_store(store, 1)
    other = Store.open(store.folder)
    store.add([make_photo(1)], [make_file(1)], [])
    assert other.list_live_ids().tolist() == [0]
    other.refresh()
    assert other.list_live_ids().tolist() == [0, 1]
    store.add([make_photo(2)], [make_file(2)], [])
    assert other.add([make_photo(2), make_photo(3)], [make_file(3)], []) == [2, 3]  # without refresh


def test_create_refuses_an_index_and_a_folder_that_is_not_ours(store: Store, tmp_path: Path) -> None:
    fill_store(store, 2)
    with pytest.raises(IndexStateError, match=r"There is an index at .* already"):
        Store.create(store.folder, make_manifest())
    assert Store.open(store.folder).num_photos == 2
    anew = Store.create(store.folder, make_manifest(model="other"), replace=True)
    assert anew.num_photos == 0 and Store.open(store.folder).manifest.model == "other"
    precious = tmp_path / "pictures" / "tables"
    precious.mkdir(parents=True)
    for replace in (False, True):
        with pytest.raises(IndexStateError, match="is not empty and holds no index"):
            Store.create(tmp_path / "pictures", make_manifest(), replace=replace)
    assert precious.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(IndexStateError, match="An index cannot be made at"):
        Store.create(tmp_path / "file" / "index", make_manifest())


def test_an_interrupted_create_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Store.create(folder, make_manifest())
    with pytest.raises(IndexStateError, match="There is no index"):
        Store.open(folder)
    assert fill_store(Store.create(folder, make_manifest()), 1).num_photos == 1


def test_an_empty_index(store: Store) -> None:
    assert store.read_files() == {} and store.read_failures() == {} and store.map_ids_by_digest() == {}
    assert store.list_live_ids().tolist() == [] and store.list_live_ids().dtype == np.int64
    assert list(store.iterate_vectors()) == [] and list(store.texts.iterate_vectors()) == []
    assert store.find_photo(ROOT / "a.jpg") is None and store.prune() == 0
    store.mark_missing([ROOT / "a.jpg"])
    store.remove_failures([])
    store.optimize()
    with pytest.raises(IndexStateError):
        store.read_photos([0])
