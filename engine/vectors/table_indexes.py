"""The FAISS indexes that follow the store's tables: read from their files, appended to, or built again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.index.store import CACHE_FOLDER, Store
from engine.vectors import segment_files
from engine.vectors.slot_bounds import NOISE
from engine.vectors.slot_index import SlotIndex, VectorsOf

_SEGMENT_ROWS = 65536  # then it is written and mapped: building holds 1 GB at 32 x 256 in fp16
_MAX_PIECES = 8  # smaller segments, each from one update; the next update makes one of them all
_CHECKED_ROWS = 8  # of each segment, compared with the table when it is opened


@dataclass(frozen=True)
class FollowedTable:
    """The rows of a table that an index follows; ids ascend, batches(after_id) comes in their order."""

    root: Path
    version: int
    ids: np.ndarray
    batches: Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]
    vectors_of: VectorsOf
    num_slots: int
    width: int


def open_photo_index(store: Store, kind: str = "fp16", device: str = "auto") -> SlotIndex:
    """The index of a store's photos, from its files where they are good, else built from the table.

    Rows that came since are appended and saved. Photos without files are in it: search with
    allowed=store.list_live_ids().
    """
    shape = (store.manifest.num_queries, store.manifest.embed_dim)
    root = store.folder / CACHE_FOLDER / "photos"
    table = FollowedTable(
        root, store.version, store.list_ids(), store.iterate_vectors, store.read_vectors, *shape
    )
    return _open(table, kind, device)


def open_text_index(store: Store, kind: str = "fp16", device: str = "auto") -> SlotIndex:
    """The index of a store's texts, one slot wide; as `open_photo_index`."""

    def batches(after_id: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return ((ids, vectors[:, None]) for ids, vectors in store.texts.iterate_vectors(after_id))

    def vectors_of(ids: np.ndarray) -> np.ndarray:
        return store.texts.read_vectors(ids)[:, None]

    root = store.folder / CACHE_FOLDER / "texts"
    ids = store.texts.list_ids()
    table = FollowedTable(root, store.texts.version, ids, batches, vectors_of, 1, store.manifest.embed_dim)
    return _open(table, kind, device)


def open_caption_index(store: Store, kind: str = "fp16", device: str = "auto") -> SlotIndex:
    """The index of the captions' vectors under the captions' ids, one slot wide; as `open_photo_index`."""
    ids, _ = store.captions.list_ids_and_photos()

    def batches(after_id: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rest = ids[np.searchsorted(ids, after_id, side="right") :]
        for start in range(0, len(rest), _SEGMENT_ROWS):
            part = rest[start : start + _SEGMENT_ROWS]
            yield part, vectors_of(part)

    def vectors_of(some: np.ndarray) -> np.ndarray:
        return store.captions.read_vectors(some)[:, None]

    root = store.folder / CACHE_FOLDER / "captions"
    version, width = store.captions.version, store.manifest.embed_dim
    return _open(FollowedTable(root, version, ids, batches, vectors_of, 1, width), kind, device)


def _open(table: FollowedTable, kind: str, device: str) -> SlotIndex:
    shape = (table.num_slots, table.width)
    index = SlotIndex(*shape, kind, device, vectors_of=table.vectors_of if kind == "int8" else None)
    saved = segment_files.load_segments(table.root, *shape, kind)
    if saved is None or not _can_go_on(saved, table):
        saved = segment_files.SavedSegments(-1, [], [])
    index.segments = list(saved.segments)
    if saved.version == table.version and len(index) == len(table.ids):
        return index
    after_id = int(table.ids[len(index) - 1]) if len(index) else -1
    with segment_files.segment_writer(table.root, saved.names) as writer:
        for ids, vectors in table.batches(after_id):
            index.add(ids, vectors)
            if len(index.segments[-1]) >= _SEGMENT_ROWS:
                index.segments[-1] = writer.keep(index.segments[-1])
        if index.segments and not index.segments[-1].frozen:
            index.segments[-1] = writer.keep(index.segments[-1])
        writer.publish(table.version, *shape, kind)
    return index


def _can_go_on(saved: segment_files.SavedSegments, table: FollowedTable) -> bool:
    """Whether the saved segments hold the table's first rows, and not in too many pieces."""
    ids = np.concatenate([np.zeros(0, np.int64), *(segment.ids for segment in saved.segments)])
    if not np.array_equal(ids, table.ids[: len(ids)]):
        return False
    pieces = sum(len(segment) < _SEGMENT_ROWS for segment in saved.segments)
    if pieces >= _MAX_PIECES and len(ids) < len(table.ids):
        return False
    for segment in saved.segments:
        rows = np.unique(np.linspace(0, len(segment) - 1, _CHECKED_ROWS).astype(np.int64))
        difference = segment.reconstruct(rows) - table.vectors_of(segment.ids[rows])
        if not np.linalg.norm(difference, axis=2).max() <= segment.rounding + NOISE:
            return False
    return True
