"""Every kind of index finds what brute force finds, ids and scores; bad FAISS files are built again."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from engine.index.manifest import Manifest
from engine.index.path_table import FileRecord
from engine.index.photo_table import NewPhoto
from engine.index.store import Store
from engine.index.writer_lock import locked
from engine.vectors import gpu_slots, segment_files, segments, table_indexes
from engine.vectors.slot_bounds import merge_maximum
from engine.vectors.slot_index import SlotIndex
from engine.vectors.table_indexes import open_photo_index, open_text_index

S, E = 8, 32
KINDS = ["flat", "fp16", "int8"]


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def photo_vectors(count: int, seed: int = 0, own: float = 0.7) -> np.ndarray:
    """(N, S, E) float16 unit vectors: a part of the photo, a part of the slot, and `own` of neither."""
    rng = np.random.default_rng(seed)
    photo = rng.standard_normal((count, 1, E))
    slot = np.random.default_rng(99).standard_normal((1, S, E))
    return unit(photo + slot + own * rng.standard_normal((count, S, E))).astype(np.float16)


def text_vectors(count: int, seed: int = 1) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, E))).astype(np.float32)


def brute_force(
    ids: np.ndarray, scores_N: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    keep = np.ones(len(ids), bool) if allowed is None else np.array([i in set(allowed.tolist()) for i in ids])
    ids, scores_N = ids[keep], scores_N[keep]
    best = np.lexsort((ids, -scores_N))[:k]
    padding = k - len(best)
    return np.append(ids[best], [-1] * padding), np.append(scores_N[best], [-np.inf] * padding)


def best_by_maximum(
    ids: np.ndarray, vectors_NSE: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    return brute_force(ids, (vectors_NSE.astype(np.float64) @ query).max(axis=1), k, allowed)


def best_by_mean(
    ids: np.ndarray, vectors_NSE: np.ndarray, photo: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    cosines = np.einsum("nse,se->ns", vectors_NSE.astype(np.float64), photo.astype(np.float64))
    return brute_force(ids, cosines.mean(axis=1), k, allowed)


def assert_same(found: tuple[np.ndarray, np.ndarray], want: tuple[np.ndarray, np.ndarray]) -> None:
    assert found[0].dtype == np.int64 and found[1].dtype == np.float32
    assert found[0].tolist() == want[0].astype(int).tolist()
    np.testing.assert_allclose(found[1], want[1], atol=2e-6)


class OnGpu:
    """A flat index that behaves as FAISS' on a GPU: half floats, k <= 2048, no selectors."""

    def __init__(self, width: int) -> None:
        self._index = faiss.IndexScalarQuantizer(
            width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )

    def add(self, rows: np.ndarray) -> None:
        self._index.add(rows)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        assert k <= gpu_slots.MAX_HITS
        return self._index.search(queries.astype(np.float16).astype(np.float32), k)


@pytest.fixture(params=["cpu", "like a gpu", "gpu"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        return "cpu"
    if request.param == "gpu" and faiss.get_num_gpus() == 0:
        pytest.skip("no GPU here")
    if request.param == "like a gpu":
        monkeypatch.setattr(gpu_slots, "_new_resources", object)
        monkeypatch.setattr(gpu_slots, "_new_index", lambda resources, width, kind: OnGpu(width))
    return "gpu"


def an_index(
    kind: str, ids: np.ndarray, photos: np.ndarray, device: str = "cpu", parts: int = 1
) -> SlotIndex:
    places = {int(id_): place for place, id_ in enumerate(ids)}

    def vectors_of(wanted: np.ndarray) -> np.ndarray:
        return photos[[places[int(id_)] for id_ in wanted]]

    index = SlotIndex(photos.shape[1], photos.shape[2], kind, device, vectors_of=vectors_of)
    for part in np.array_split(np.arange(len(ids)), parts):
        index.add(ids[part], photos[part])
        if index.segments:
            index.segments[-1].frozen = True  # the next part goes into a segment of its own
    return index


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_search_is_brute_force(kind: str, device: str, parts: int) -> None:
    photos = photo_vectors(900)
    ids = np.random.default_rng(5).permutation(5000)[:900]
    index = an_index(kind, ids, photos, device, parts)
    queries = text_vectors(6)
    allowed = np.sort(np.random.default_rng(6).permutation(ids)[:500])
    for k in (1, 20, 128):
        for mask in (None, allowed, ids[:3], np.arange(10**6, 10**6 + 5)):
            found_ids, found_scores = index.search(queries, k, mask)
            assert found_ids.shape == found_scores.shape == (6, k)
            for found, query in zip(zip(found_ids, found_scores, strict=True), queries, strict=True):
                assert_same(found, best_by_maximum(ids, photos, query, k, mask))


@pytest.mark.parametrize("kind", KINDS)
def test_search_slots_is_brute_force(kind: str, device: str) -> None:
    photos = photo_vectors(700)
    ids = np.random.default_rng(5).permutation(5000)[:700]
    index = an_index(kind, ids, photos, device, parts=2)
    allowed = np.sort(ids[100:])
    for k in (1, 7, 60, 800):
        for mask in (None, allowed):
            found = index.search_slots(photos[33], k, mask)
            assert_same(found, best_by_mean(ids, photos, photos[33], k, mask))
    assert index.search_slots(photos[33], 5)[0][0] == ids[33]


@pytest.mark.parametrize("kind", KINDS)
def test_search_slots_fetches_more_until_it_is_sure(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.vectors.slot_index._MEAN_FACTOR", 1)
    photos = photo_vectors(1500, own=6.0)  # slots that hardly agree: the lists show different photos
    ids = np.arange(1500)
    index = an_index(kind, ids, photos)
    fetched = []
    lists = index._lists

    def counted(views: Any, queries: Any, fetch: int) -> Any:
        fetched.append(fetch)
        return lists(views, queries, fetch)

    monkeypatch.setattr(index, "_lists", counted)
    probe = photo_vectors(1, seed=77, own=6.0)[0]
    found = index.search_slots(probe, 4)
    assert len(fetched) >= 3 and fetched[1] == 2 * fetched[0]
    assert_same(found, best_by_mean(ids, photos, probe, 4))
    first_round = np.unique(
        np.concatenate(
            [part[0] for part, _ in lists(index._views(None, 20), probe[:, None].astype(np.float32), 20)[0]]
        )
    )
    assert not set(found[0]) <= set(first_round), "a case that one round settles shows nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_int8_and_others_ask_again_when_the_edge_is_not_sure(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.vectors.slot_index._SPARE", 0)
    monkeypatch.setattr("engine.vectors.slot_index._ROUNDED_FACTOR", 1)
    photos = photo_vectors(600)
    ids = np.arange(600)
    index = an_index(kind, ids, photos)
    for query in text_vectors(10):
        found = index.search(query[None], 15)
        assert_same((found[0][0], found[1][0]), best_by_maximum(ids, photos, query, 15))


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_the_lower_id(kind: str, device: str) -> None:
    # sums of powers of two: every way to add them up gives the same float
    photos = np.zeros((300, S, E), np.float16)
    photos[:, :, 0] = 0.5
    photos[::3, 2, 0] = 1.0  # 100 photos share the best score, in the same slot
    photos[7, 1, 0] = 1.0  # and one of them has it in another
    ids = np.random.default_rng(3).permutation(300)
    index = an_index(kind, ids, photos, device, parts=2)
    query = np.zeros((1, E), np.float32)
    query[0, 0] = 1
    for k in (1, 10, 99, 105, 300):
        found = index.search(query, k)
        assert_same((found[0][0], found[1][0]), best_by_maximum(ids, photos, query[0], k))
    probe = np.zeros((S, E), np.float16)
    probe[:, 0] = 1
    for k in (1, 10, 150):
        assert_same(index.search_slots(probe, k), best_by_mean(ids, photos, probe, k))


@pytest.mark.parametrize("kind", KINDS)
def test_small_collections(kind: str, device: str) -> None:
    query = text_vectors(2)
    empty = an_index(kind, np.zeros(0, np.int64), photo_vectors(0), device)
    assert len(empty) == 0 and empty.ids.tolist() == []
    ids, scores = empty.search(query, 3)
    assert ids.tolist() == [[-1] * 3] * 2 and (scores == -np.inf).all()
    assert empty.search_slots(photo_vectors(1)[0], 2)[0].tolist() == [-1, -1]
    photos = photo_vectors(3)
    for count in (1, 3):
        numbers = np.array([40, 7, 23])[:count]
        index = an_index(kind, numbers, photos[:count], device)
        for k in (1, 3, 5000):
            found = index.search(query[:1], k)
            assert_same((found[0][0], found[1][0]), best_by_maximum(numbers, photos[:count], query[0], k))
            assert_same(index.search_slots(photos[0], k), best_by_mean(numbers, photos[:count], photos[0], k))
        assert index.search(query, 0)[0].shape == (2, 0) and index.search_slots(photos[0], 0)[0].shape == (0,)
        assert index.search(query[:0], 4)[0].shape == (0, 4)


def test_rows_added_after_a_search_are_found() -> None:
    photos = photo_vectors(50)
    index = SlotIndex(S, E, "fp16", "cpu")
    index.add(np.arange(20), photos[:20])
    index.search(text_vectors(1), 5)
    index.add(np.arange(20, 50), photos[20:].astype(np.float32))
    query = text_vectors(1)
    found = index.search(query, 50)
    assert_same((found[0][0], found[1][0]), best_by_maximum(np.arange(50), photos, query[0], 50))
    np.testing.assert_array_equal(index.reconstruct(np.array([49, 3])), photos[[49, 3]].astype(np.float32))


def test_many_queries_are_each_their_own() -> None:
    photos, queries = photo_vectors(80), text_vectors(600)
    found = an_index("fp16", np.arange(80), photos).search(queries, 5)
    for row in (0, 255, 256, 599):
        want = best_by_maximum(np.arange(80), photos, queries[row], 5)
        assert_same((found[0][row], found[1][row]), want)


def test_what_the_index_is_given_is_checked() -> None:
    with pytest.raises(ValueError, match="'int4'; it must be one of flat, fp16, int8"):
        SlotIndex(S, E, "int4")
    with pytest.raises(ValueError, match="vectors_of"):
        SlotIndex(S, E, "int8")
    with pytest.raises(ValueError, match="must be auto, cpu or gpu"):
        SlotIndex(S, E, device="tpu")
    with pytest.raises(ValueError, match=r"\(3, 8, 32\) for 2 ids"):
        SlotIndex(S, E, device="cpu").add(np.arange(2), photo_vectors(3))


def test_more_hits_than_a_gpu_gives_come_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_slots, "_new_resources", object)
    monkeypatch.setattr(gpu_slots, "_new_index", lambda resources, width, kind: OnGpu(width))
    monkeypatch.setattr(gpu_slots, "MAX_HITS", 64)
    photos, query = photo_vectors(400), text_vectors(1)
    ids = np.arange(400)
    index = an_index("fp16", ids, photos, "gpu")
    copy = index._device
    assert copy is not None
    few = np.arange(0, 400, 8)
    for allowed in (None, few, np.arange(100, 390), None):
        for k in (3, 40, 200):
            found = index.search(query, k, allowed)
            assert_same((found[0][0], found[1][0]), best_by_maximum(ids, photos, query[0], k, allowed))
    index.search(query, 3, few)  # 350 hidden rows do not fit below the limit: the copy leaves them out
    assert copy._rows.tolist() == few.tolist()
    index.search(query, 3, np.arange(60))
    assert set(range(60)) <= set(copy._rows.tolist())


def test_a_gpu_without_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("cudaMalloc error out of memory")

    monkeypatch.setattr(gpu_slots, "_new_resources", full)
    photos, query = photo_vectors(30), text_vectors(1)
    index = an_index("fp16", np.arange(30), photos, "gpu")
    found = index.search(query, 4)
    assert_same((found[0][0], found[1][0]), best_by_maximum(np.arange(30), photos, query[0], 4))


def test_merge_maximum_by_hand() -> None:
    ids = np.array([[4, 2, 9], [2, 7, -1]])
    scores = np.array([[0.9, 0.5, 0.5], [0.8, 0.5, -np.inf]], np.float32)
    for k, want in ((1, [4]), (3, [4, 2, 7]), (9, [4, 2, 7, 9])):
        got_ids, got_scores = merge_maximum(ids, scores, k)
        assert got_ids.tolist() == want
        np.testing.assert_array_equal(got_scores, np.float32([0.9, 0.8, 0.5, 0.5])[: len(want)])
    assert merge_maximum(np.full((2, 3), -1), np.full((2, 3), -np.inf, np.float32), 3)[0].tolist() == []
    assert merge_maximum([np.array([1]), np.array([3, 2])], [np.ones(1), np.ones(2)], 2)[0].tolist() == [1, 2]


# FAISS files


@pytest.fixture
def store(tmp_path: Path) -> Store:
    manifest = Manifest("mini", "aa", 160, "squash", S, E, (3, 5))
    return fill(Store.create(tmp_path / "index", manifest), 40)


def fill(store: Store, count: int, seed: int = 0) -> Store:
    start = len(store.all_ids())
    new = photo_vectors(count, seed=seed + start)
    root = Path("/photos")
    names = [f"{start + n:032x}" for n in range(count)]
    files = [FileRecord(root, root / name, 1, 1, name) for name in names]
    store.add([NewPhoto(name, 1, 1, vector) for name, vector in zip(names, new, strict=True)], files, [])
    return store


@pytest.fixture
def rows_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each batch took from the table to build an index."""
    counts: list[int] = []
    batches = store.iter_vectors

    def counted(after_id: int = -1, batch: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ids, part in batches(after_id, batch):
            counts.append(len(ids))
            yield ids, part

    monkeypatch.setattr(store, "iter_vectors", counted)
    return counts


def assert_finds(index: SlotIndex, store: Store) -> None:
    ids = store.all_ids()
    assert index.ids.tolist() == ids.tolist()
    photos, query = store.vectors(ids), text_vectors(1)
    found = index.search(query, len(ids))
    assert_same((found[0][0], found[1][0]), best_by_maximum(ids, photos, query[0], len(ids)))


def taken(counts: list[int]) -> int:
    total = sum(counts)
    counts.clear()
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_files_follow_the_table(store: Store, rows_read: list[int], kind: str) -> None:
    assert_finds(open_photo_index(store, kind, "cpu"), store)
    assert taken(rows_read) == 40
    assert_finds(open_photo_index(store, kind, "cpu"), store)
    assert taken(rows_read) == 0
    fill(store, 5)
    assert_finds(open_photo_index(store, kind, "cpu"), store)
    assert taken(rows_read) == 5
    store.mark_missing([Path("/photos") / f"{3:032x}"])  # hidden by live_ids, not removed
    index = open_photo_index(store, kind, "cpu")
    assert_finds(index, store)
    assert 3 not in index.search(text_vectors(1), 45, store.live_ids())[0]
    assert taken(rows_read) == 0
    store.prune()
    assert_finds(open_photo_index(store, kind, "cpu"), store)
    assert taken(rows_read) == 44
    assert_finds(open_photo_index(Store.open(store.folder), kind, "cpu"), store)


def test_a_new_version_with_the_same_rows_reads_nothing(store: Store, rows_read: list[int]) -> None:
    fill(store, 5)  # a second fragment
    open_photo_index(store, device="cpu")
    taken(rows_read)
    before = store.version
    store._photos.table.compact(0)
    assert store.version > before
    assert_finds(open_photo_index(store, device="cpu"), store)
    assert taken(rows_read) == 0
    pointer = json.loads((store.folder / "faiss" / "photos" / "current.json").read_bytes())
    assert pointer["version"] == store.version


def test_another_kind_is_built_anew(store: Store, rows_read: list[int]) -> None:
    open_photo_index(store, "fp16", "cpu")
    index = open_photo_index(store, "flat", "cpu")
    assert_finds(index, store)
    assert taken(rows_read) == 80 and index.kind == "flat"


def one(root: Path, pattern: str) -> Path:
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
    "segment gone": lambda root: shutil.rmtree(one(root, "*/")),
    "slot gone": lambda root: one(root, "*/slot-03.faiss").unlink(),
    "slot cut": lambda root: cut(one(root, "*/slot-03.faiss"), 500),
    "slot empty": lambda root: cut(one(root, "*/slot-00.faiss"), 0),
    "slot garbage": lambda root: one(root, "*/slot-05.faiss").write_bytes(os.urandom(3000)),
    "one bit in the middle": lambda root: flip(one(root, "*/slot-02.faiss"), 1234),
    "one bit of the header": lambda root: flip(one(root, "*/slot-02.faiss"), 9, keep_time=True),
    "one bit of the first row": lambda root: flip(one(root, "*/slot-02.faiss"), -1, keep_time=True),
    "two slots swapped": lambda root: os.replace(one(root, "*/slot-01.faiss"), one(root, "*/slot-06.faiss")),
    "ids cut": lambda root: cut(one(root, "*/ids.npy"), 100),
    "ids garbage": lambda root: one(root, "*/ids.npy").write_bytes(b"garbage"),
    "meta cut": lambda root: cut(one(root, "*/meta.json"), 30),
    "meta empty": lambda root: one(root, "*/meta.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_built_again(store: Store, rows_read: list[int], damage: str) -> None:
    open_photo_index(store, device="cpu")
    assert taken(rows_read) == 40
    DAMAGE[damage](store.folder / "faiss" / "photos")
    assert_finds(open_photo_index(store, device="cpu"), store)
    assert taken(rows_read) == 40
    assert_finds(open_photo_index(store, device="cpu"), store)
    assert taken(rows_read) == 0


def test_files_that_were_copied_are_good(store: Store, rows_read: list[int]) -> None:
    open_photo_index(store, device="cpu")
    taken(rows_read)
    for path in (store.folder / "faiss").rglob("*.faiss"):
        os.utime(path, ns=(0, 0))
    assert_finds(open_photo_index(store, device="cpu"), store)
    assert taken(rows_read) == 0


def test_files_of_another_index_with_the_same_ids_are_not_used(store: Store, tmp_path: Path) -> None:
    open_photo_index(store, device="cpu")
    shutil.copytree(store.folder / "faiss", tmp_path / "old")
    anew = fill(Store.create(store.folder, store.manifest, replace=True), 40, seed=500)
    assert not (store.folder / "faiss").exists()
    shutil.copytree(tmp_path / "old", store.folder / "faiss")
    assert anew.version == store.version
    assert_finds(open_photo_index(anew, device="cpu"), anew)


def test_a_kill_before_the_pointer_leaves_the_old_files(
    store: Store, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_photo_index(store, device="cpu")
    root = store.folder / "faiss" / "photos"
    fill(store, 5)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "current.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(segment_files.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            open_photo_index(store, device="cpu")
    saved = segment_files.load(root, S, E, "fp16")
    assert saved is not None and [len(segment) for segment in saved.segments] == [40]
    taken(rows_read)
    assert_finds(open_photo_index(store, device="cpu"), store)
    assert taken(rows_read) == 5
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
        assert_finds(open_photo_index(store, device="cpu"), store)
    assert [path.name for path in (store.folder / "faiss" / "photos").iterdir()] == ["lock"]
    assert_finds(open_photo_index(store, device="cpu"), store)
    assert taken(rows_read) == 80


def test_while_another_process_writes_the_files_they_are_left_alone(store: Store) -> None:
    root = store.folder / "faiss" / "photos"
    root.mkdir(parents=True)
    with locked(root):
        assert_finds(open_photo_index(store, device="cpu"), store)
    assert not (root / "current.json").exists()


def test_many_updates_do_not_leave_many_pieces(store: Store, rows_read: list[int]) -> None:
    pieces = []
    for _ in range(12):
        fill(store, 2)
        index = open_photo_index(store, device="cpu")
        pieces.append(len(index.segments))
    assert_finds(index, store)
    assert max(pieces) == 8 and pieces[7:10] == [8, 1, 2]


def test_large_tables_are_built_in_segments(
    store: Store, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_indexes, "_SEGMENT_ROWS", 16)
    small_batches = store.iter_vectors
    monkeypatch.setattr(store, "iter_vectors", lambda after_id: small_batches(after_id, 8))
    index = open_photo_index(store, device="cpu")
    assert [len(segment) for segment in index.segments] == [16, 16, 8]
    assert all(segment.frozen for segment in index.segments)
    assert_finds(index, store)


def test_an_empty_table(tmp_path: Path) -> None:
    empty = Store.create(tmp_path / "index", Manifest("mini", "aa", 160, "squash", S, E, (3, 5)))
    for _ in range(2):
        assert open_photo_index(empty, device="cpu").search(text_vectors(1), 2)[0].tolist() == [[-1, -1]]
        assert len(open_text_index(empty, device="cpu")) == 0
    fill(empty, 3)
    assert_finds(open_photo_index(empty, device="cpu"), empty)


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_finds_texts(store: Store, kind: str) -> None:
    texts = text_vectors(300).astype(np.float16)
    store.add_texts([f"text {n}" for n in range(250)], texts[:250])
    open_text_index(store, kind, "cpu")
    store.add_texts([f"text {n}" for n in range(250, 300)], texts[250:])
    for _ in range(2):
        index = open_text_index(store, kind, "cpu")
        photo = store.vectors([4])[0]
        found = merge_maximum(*index.search(photo, 20), 20)
        scores = (texts.astype(np.float64) @ photo.astype(np.float64).T).max(axis=1)
        assert_same(found, brute_force(np.arange(300), scores, 20))
