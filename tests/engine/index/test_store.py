"""The store keeps every photo once, every path exactly, and loses nothing that was committed."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import IndexStateError
from engine.index import database
from engine.index.manifest import Manifest
from engine.index.path_table import FailureRecord, FileRecord
from engine.index.photo_table import NewPhoto
from engine.index.store import Store

Q, E = 4, 8
ROOT = Path("/photos")
REPOSITORY = Path(__file__).parents[3]


def a_manifest(**changes: Any) -> Manifest:
    values = {
        "model": "mini",
        "model_digest": "aa",
        "image_size": 160,
        "preprocessing": "squash",
        "num_queries": Q,
        "embed_dim": E,
        "patch_shape": (3, 5),
        "features": "store",
    }
    return Manifest(**{**values, **changes})


def a_photo(number: int, features: bytes | None = None) -> NewPhoto:
    vectors = np.random.default_rng(number).standard_normal((Q, E)).astype(np.float16)
    return NewPhoto(f"{number:032x}", 100 + number, 200 + number, vectors, features)


def a_file(number: int, name: str | None = None, root: Path = ROOT, missing: bool = False) -> FileRecord:
    path = root / (name or f"{number}.jpg")
    return FileRecord(root, path, 1000 + number, 2000 + number, f"{number:032x}", missing)


def a_failure(name: str, reason: str = "it is empty") -> FailureRecord:
    return FailureRecord(ROOT, ROOT / name, 0, 7, reason)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield Store.create(tmp_path / "index", a_manifest())


def filled(store: Store, count: int = 5) -> Store:
    store.add([a_photo(n) for n in range(count)], [a_file(n) for n in range(count)], [])
    return store


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_what_is_added_is_read_back(store: Store) -> None:
    assert store.add([a_photo(0), a_photo(1)], [a_file(0), a_file(1)], [a_failure("bad.jpg")]) == [0, 1]
    again = Store.open(store.folder)
    assert again.manifest == a_manifest()
    assert again.photo_ids() == {f"{0:032x}": 0, f"{1:032x}": 1}
    assert again.files() == {ROOT / "0.jpg": a_file(0), ROOT / "1.jpg": a_file(1)}
    assert again.failures() == {ROOT / "bad.jpg": a_failure("bad.jpg")}
    one, zero = again.photos([1, 0])
    assert (one.id, one.digest, one.width, one.height) == (1, f"{1:032x}", 101, 201)
    assert one.paths == (ROOT / "1.jpg",) and zero.path == ROOT / "0.jpg"
    assert (again.num_photos, again.num_files, again.num_texts) == (2, 2, 0)
    assert again.disk_bytes() >= 2 * Q * E * 2


def test_a_digest_is_added_once_and_keeps_all_its_paths(store: Store) -> None:
    first = store.add([a_photo(3), a_photo(4), a_photo(3)], [a_file(3), a_file(4)], [])
    assert first == [0, 1, 0]
    assert store.add([a_photo(5), a_photo(4)], [a_file(4, "copy.jpg"), a_file(5)], []) == [2, 1]
    assert store.num_photos == 3 and len(store.photo_ids()) == 3
    assert store.photos([1])[0].paths == (ROOT / "4.jpg", ROOT / "copy.jpg")


def test_a_path_is_replaced_not_doubled(store: Store) -> None:
    filled(store, 2)
    changed = FileRecord(ROOT, ROOT / "0.jpg", 5, 6, f"{1:032x}")
    store.put_files([a_file(0), changed])  # of twice the same path, the last
    assert store.files() == {ROOT / "0.jpg": changed, ROOT / "1.jpg": a_file(1)}
    assert store.photos([0])[0].paths == ()
    assert store.photos([1])[0].paths == (ROOT / "0.jpg", ROOT / "1.jpg")
    assert store.live_ids().tolist() == [1]


def test_a_path_is_a_file_or_a_failure(store: Store) -> None:
    filled(store, 2)
    store.add([], [], [a_failure("0.jpg", "truncated"), a_failure("x.jpg")])
    assert set(store.files()) == {ROOT / "1.jpg"} and store.live_ids().tolist() == [1]
    store.add([], [], [a_failure("x.jpg", "now another reason")])
    assert store.failures()[ROOT / "x.jpg"].reason == "now another reason"
    store.put_files([a_file(0)])
    assert set(store.failures()) == {ROOT / "x.jpg"} and store.live_ids().tolist() == [0, 1]
    store.remove_failures([ROOT / "x.jpg", ROOT / "never seen.jpg"])
    assert store.failures() == {}


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
    filled(store, 2)
    strange = a_file(9, name)
    store.add([a_photo(9)], [strange], [])
    assert Store.open(store.folder).files()[strange.path] == strange
    found = store.photo_at(strange.path)
    assert found is not None and found.id == 2 and found.path == strange.path
    store.mark_missing([strange.path])
    assert store.live_ids().tolist() == [0, 1] and store.photo_at(strange.path) is None
    assert store.files()[strange.path].missing
    store.add([], [], [a_failure(name)])
    assert set(store.files()) == {ROOT / "0.jpg", ROOT / "1.jpg"}
    store.remove_failures([strange.path])
    assert store.failures() == {}


def test_a_strange_root_and_reason(store: Store) -> None:
    root = Path(os.fsdecode(b"/it's \xff\n/photos"))
    record = FileRecord(root, root / "a.jpg", 1, 2, "d'1")
    photo = NewPhoto("d'1", 1, 1, np.zeros((Q, E), np.float16))
    reason = f"cannot read {os.fsdecode(b'x')}{chr(0xDCFF)}"
    store.add([photo], [record], [FailureRecord(root, root / "b.jpg", 1, 2, reason)])
    assert store.files(root) == {root / "a.jpg": record}
    assert store.photos([0])[0].paths == (root / "a.jpg",)
    assert store.failures(root)[root / "b.jpg"].reason == "cannot read x\\udcff"


def test_roots_that_overlap_hold_a_path_once(store: Store) -> None:
    inner = ROOT / "2024"
    store.add([a_photo(1), a_photo(2)], [a_file(1, "a.jpg", inner), a_file(2, "b.jpg")], [])
    store.put_files([a_file(3, "c.jpg", Path("/photos2"))])
    assert set(store.files(ROOT)) == {inner / "a.jpg", ROOT / "b.jpg"}
    assert set(store.files(inner)) == {inner / "a.jpg"}
    store.put_files([a_file(1, "2024/a.jpg")])  # the outer root is walked now
    assert store.files()[inner / "a.jpg"].root == ROOT and len(store.files()) == 3
    assert set(store.files(inner)) == {inner / "a.jpg"}
    store.put_files([a_file(1, "a.jpg", inner)])
    assert store.files()[inner / "a.jpg"].root == inner and store.num_files == 3


def test_missing_is_not_forgotten_and_comes_back(store: Store) -> None:
    filled(store, 3)
    store.put_files([a_file(1, "copy of 1.jpg")])
    version = store.version
    store.mark_missing([ROOT / "0.jpg", ROOT / "1.jpg", ROOT / "unknown.jpg"])
    assert store.live_ids().tolist() == [1, 2]  # 1 still has its copy
    assert store.photos([1])[0].paths == (ROOT / "copy of 1.jpg",)
    assert store.num_files == 2 and len(store.files()) == 4
    store.put_files([a_file(0)])
    assert store.live_ids().tolist() == [0, 1, 2] and not store.files()[ROOT / "0.jpg"].missing
    assert store.version == version  # the photos did not change: FAISS files stay


def test_prune_forgets_and_never_gives_an_id_again(store: Store) -> None:
    filled(store, 5)
    store.mark_missing([ROOT / "1.jpg", ROOT / "3.jpg", ROOT / "4.jpg"])
    assert store.prune() == 2
    assert set(store.files()) == {ROOT / "0.jpg", ROOT / "2.jpg"}
    assert store.live_ids().tolist() == [0, 2] and store.num_photos == 2
    np.testing.assert_array_equal(store.vectors([2]), a_photo(2).vectors_QE[None])
    assert store.add([a_photo(7)], [a_file(7)], []) == [5]
    assert store.prune() == 1 and store.all_ids().tolist() == [0, 2, 5]
    assert store.prune() == 0
    with pytest.raises(IndexStateError, match="photo 3 is no longer in the index"):
        store.photos([0, 3])


def test_ten_thousand_paths_are_one_commit(store: Store) -> None:
    files = [a_file(n) for n in range(10_000)]
    store.put_files(files)
    before = store._files.table.version
    store.mark_missing([file.path for file in files])
    assert store._files.table.version == before + 1 and store.num_files == 0
    store.put_files(files)
    assert store._files.table.version == before + 2 and store.num_files == 10_000


def test_vectors_and_features_come_in_the_order_asked(store: Store) -> None:
    photos = [a_photo(n, os.urandom(3000 + n) if n % 3 else None) for n in range(40)]
    for start in range(0, 40, 10):  # four fragments
        store.add(photos[start : start + 10], [], [])
    ids = [*np.random.default_rng(0).permutation(40)[:25].tolist(), 7, 7]
    for each in (store, Store.open(store.folder)):
        vectors = each.vectors(ids)
        assert vectors.dtype == np.float16
        np.testing.assert_array_equal(vectors, np.stack([photos[n].vectors_QE for n in ids]))
        assert each.features(ids) == [photos[n].features for n in ids]
    assert store.vectors([]).shape == (0, Q, E) and store.features([]) == [] and store.photos([]) == []


def test_all_vectors_stream_in_id_order(store: Store) -> None:
    for start in range(0, 30, 10):
        filled_part = [a_photo(n) for n in range(start, start + 10)]
        store.add(filled_part, [a_file(n) for n in range(start, start + 10)], [])
    store.mark_missing([ROOT / "4.jpg", ROOT / "12.jpg"])
    store.prune()
    parts = list(store.iter_vectors(after_id=2, batch=7))
    ids = np.concatenate([part for part, _ in parts])
    assert ids.tolist() == [n for n in range(3, 30) if n not in (4, 12)]
    assert max(len(part) for part, _ in parts) == 7
    want = np.stack([a_photo(int(n)).vectors_QE for n in ids])
    np.testing.assert_array_equal(np.concatenate([vectors for _, vectors in parts]), want)


def test_compaction_changes_nothing_that_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.index.store.MAX_FRAGMENTS", 3)
    photos = [a_photo(n, bytes([n]) * 500) for n in range(12)]
    for n in range(12):
        store.add([photos[n]], [a_file(n)], [])
    reader = Store.open(store.folder)
    assert reader.live_ids().tolist() == list(range(12))
    ids = [11, 0, 5]
    store.optimize()
    assert store._photos.table._handle.stats()["fragment_stats"]["num_fragments"] == 1
    for each in (store, reader, Store.open(store.folder)):  # the reader's version is gone: it reads again
        np.testing.assert_array_equal(each.vectors(ids), np.stack([photos[n].vectors_QE for n in ids]))
        assert each.features(ids) == [photos[n].features for n in ids]
        assert set(each.files()) == {ROOT / f"{n}.jpg" for n in range(12)}


def test_the_version_follows_the_photos(store: Store) -> None:
    versions = [store.version]
    filled(store, 2)
    versions.append(store.version)
    store.add([a_photo(8)], [a_file(8)], [])
    versions.append(store.version)
    store.mark_missing([ROOT / "0.jpg"])
    store.prune()
    versions.append(store.version)
    assert versions == sorted(set(versions))
    texts = store.texts_version
    store.add_texts(["a"], np.ones((1, E)))
    assert store.version == versions[-1] and store.texts_version > texts


def test_texts_are_kept_once(store: Store) -> None:
    vectors = np.random.default_rng(0).standard_normal((4, E)).astype(np.float16)
    assert store.add_texts(["a dog", "it's\n東京", "a dog", ""], vectors) == [0, 1, 0, 2]
    assert store.add_texts(["new", "a dog"], vectors[:2]) == [3, 0]
    again = Store.open(store.folder)
    assert again.texts([3, 1, 0, 1]) == ["new", "it's\n東京", "a dog", "it's\n東京"]
    assert again.num_texts == 4 and again.all_text_ids().tolist() == [0, 1, 2, 3]
    want = vectors[[0, 1, 3, 0]]
    np.testing.assert_array_equal(again.text_vectors([3, 0]), want[[3, 0]])
    (ids, got), (more_ids, more) = again.iter_text_vectors(after_id=0, batch=2)
    np.testing.assert_array_equal(np.concatenate([got, more]), want[1:])
    assert [*ids, *more_ids] == [1, 2, 3]
    with pytest.raises(IndexStateError, match="text 9"):
        again.texts([9])


def test_vectors_of_another_shape_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"\(2, 8\), the index keeps \(4, 8\)"):
        store.add([NewPhoto("a", 1, 1, np.zeros((2, E), np.float16))], [], [])


def test_a_fresh_process_reads_it(store: Store) -> None:
    filled(store, 3)
    done = run_python(
        """
        import sys
        from pathlib import Path
        from engine.index.store import Store
        store = Store.open(Path(sys.argv[1]))
        print(store.live_ids().tolist(), store.photos([2])[0].path, store.vectors([1]).tolist())
        """,
        store.folder,
    )
    assert done.stdout.strip() == f"[0, 1, 2] /photos/2.jpg {a_photo(1).vectors_QE[None].tolist()}", (
        done.stderr
    )


def test_a_kill_between_the_commits_leaves_no_file_without_its_photo(store: Store) -> None:
    filled(store, 2)
    done = run_python(
        """
        import os, sys
        from pathlib import Path
        from engine.index.store import Store
        from tests.engine.index.test_store import a_file, a_photo
        store = Store.open(Path(sys.argv[1]))
        store._files.put = lambda records: os._exit(9)
        store.add([a_photo(5)], [a_file(5)], [])
        """,
        store.folder,
    )
    assert done.returncode == 9, done.stderr
    again = Store.open(store.folder)  # the dead writer's lock is free
    assert set(again.files()) == {ROOT / "0.jpg", ROOT / "1.jpg"}
    assert again.photo_ids()[f"{5:032x}"] == 2 and again.live_ids().tolist() == [0, 1]
    assert again.add([a_photo(5)], [a_file(5)], []) == [2]  # taken up, not encoded and added again
    assert again.live_ids().tolist() == [0, 1, 2]


def test_a_second_writer_is_turned_away_at_once(store: Store) -> None:
    filled(store, 1)
    code = """
        import sys
        from pathlib import Path
        from engine.errors import IndexStateError
        from engine.index.store import Store
        store = Store.open(Path(sys.argv[1]))
        print(store.live_ids().tolist())
        try:
            store.mark_missing([Path("/photos/0.jpg")])
            print("written")
        except IndexStateError as error:
            print(error)
        """
    with store.writing():
        done = run_python(code, store.folder)
        store.add([a_photo(1)], [a_file(1)], [])  # nested: the lock is ours
    readable, refused = done.stdout.splitlines()
    assert readable == "[0]"
    assert f"another qseek (process {os.getpid()}) is writing the index" in refused
    assert run_python(code, store.folder).stdout.splitlines() == ["[0, 1]", "written"]


def test_a_store_sees_others_writes_after_refresh_and_before_its_own(store: Store) -> None:
    filled(store, 1)
    other = Store.open(store.folder)
    store.add([a_photo(1)], [a_file(1)], [])
    assert other.live_ids().tolist() == [0]
    other.refresh()
    assert other.live_ids().tolist() == [0, 1]
    store.add([a_photo(2)], [a_file(2)], [])
    assert other.add([a_photo(2), a_photo(3)], [a_file(3)], []) == [2, 3]  # without refresh


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
    filled(store, 2)

    def full(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store._photos.table._handle, "add", full)
        with pytest.raises(IndexStateError, match="is full; everything committed before is safe"):
            store.add([a_photo(2)], [a_file(2)], [])
    assert store.live_ids().tolist() == [0, 1]
    assert set(Store.open(store.folder).files()) == {ROOT / "0.jpg", ROOT / "1.jpg"}
    assert store.add([a_photo(2)], [a_file(2)], []) == [2]


def test_other_errors_are_not_dressed_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(store._photos.table._handle, "add", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        store.add([a_photo(2)], [], [])


def test_create_refuses_an_index_and_a_folder_that_is_not_ours(store: Store, tmp_path: Path) -> None:
    filled(store, 2)
    with pytest.raises(IndexStateError, match=r"there is an index at .* already"):
        Store.create(store.folder, a_manifest())
    assert Store.open(store.folder).num_photos == 2
    anew = Store.create(store.folder, a_manifest(model="other"), replace=True)
    assert anew.num_photos == 0 and Store.open(store.folder).manifest.model == "other"
    precious = tmp_path / "pictures" / "tables"
    precious.mkdir(parents=True)
    for replace in (False, True):
        with pytest.raises(IndexStateError, match="is not empty and holds no index"):
            Store.create(tmp_path / "pictures", a_manifest(), replace=replace)
    assert precious.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(IndexStateError, match="cannot make an index at"):
        Store.create(tmp_path / "file" / "index", a_manifest())


def test_an_interrupted_create_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Store.create(folder, a_manifest())
    with pytest.raises(IndexStateError, match="there is no index"):
        Store.open(folder)
    assert filled(Store.create(folder, a_manifest()), 1).num_photos == 1


def test_a_lost_table_is_named(store: Store) -> None:
    (store.folder / "tables" / "files.lance").rename(store.folder / "gone")
    with pytest.raises(IndexStateError, match=r"table 'files' .* missing or damaged"):
        Store.open(store.folder)


def test_an_empty_index(store: Store) -> None:
    assert store.files() == {} and store.failures() == {} and store.photo_ids() == {}
    assert store.live_ids().tolist() == [] and store.live_ids().dtype == np.int64
    assert list(store.iter_vectors()) == [] and list(store.iter_text_vectors()) == []
    assert store.photo_at(ROOT / "a.jpg") is None and store.prune() == 0
    store.mark_missing([ROOT / "a.jpg"])
    store.remove_failures([])
    store.optimize()
    with pytest.raises(IndexStateError):
        store.photos([0])


def test_a_literal_cannot_be_left() -> None:
    assert database.bytes_literal(b"'\n\xff") == "X'270aff'"


def test_photos_at_many_paths(store: Store) -> None:
    """Copies, missing and unknown paths, more than one SQL condition's worth."""
    store.add([a_photo(0), a_photo(1)], [a_file(0, "a.jpg"), a_file(1, "b.jpg"), a_file(0, "c.jpg")])
    store.mark_missing([ROOT / "b.jpg"])
    paths = [ROOT / f"none{number}.jpg" for number in range(2500)]
    paths[7], paths[1200], paths[2499], paths[3] = (
        ROOT / name for name in ("a.jpg", "c.jpg", "a.jpg", "b.jpg")
    )
    found = store.photos_at(paths)
    assert [row for row, photo in enumerate(found) if photo] == [7, 1200, 2499]
    assert {photo.id for photo in found if photo} == {0} and found[7] == store.photo_at(ROOT / "c.jpg")
    assert found[7] is not None and found[7].paths == (ROOT / "a.jpg", ROOT / "c.jpg")
    assert store.photos_at([]) == []
