"""Open the FAISS indexes that follow the store's tables: read them from files, append to them, or build them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.index.store import CACHE_FOLDER, Store
from engine.vectors import segment_files
from engine.vectors.slot_bounds import NOISE
from engine.vectors.slot_index import ReadVectors, SlotIndex

# A segment of this size is written and mapped; in memory it takes 1 GB at 32 x 256 in fp16.
_SEGMENT_ROWS = 65536
# Each update leaves a smaller segment; when there are so many, the next update builds all again.
_MAX_PIECES = 8
_CHECKED_ROWS = 8  # So many rows of each segment are compared with the table when it is opened.


@dataclass(frozen=True)
class FollowedTable:
    """A table that an index follows.

    root: folder of the index's files. version: version of the table. ids: the ascending ids of its rows. batches:
    returns the rows behind an id in batches (ids, vectors), in the order of the ids. read_vectors: returns the vectors
    (N, S, E) of ids.
    """

    root: Path
    version: int
    ids: np.ndarray
    batches: Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]
    read_vectors: ReadVectors
    num_slots: int
    width: int


def open_photo_index(store: Store, kind: str = "fp16", device: str = "auto") -> SlotIndex:
    """Open the index of a store's photos, from its files where they are good, else built from the table.

    Rows that came since are appended and saved. Photos without a file are in the index, so search it with
    allowed=store.list_live_ids().
    """
    shape = (store.manifest.num_queries, store.manifest.embed_dim)
    root = store.folder / CACHE_FOLDER / "photos"
    table = FollowedTable(
        root, store.version, store.list_ids(), store.iterate_vectors, store.read_vectors, *shape
    )
    return _open(table, kind, device)


def open_text_index(store: Store, kind: str = "fp16", device: str = "auto") -> SlotIndex:
    """Open the index of a store's texts, which has one slot; see `open_photo_index`."""

    def batches(after_id: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return ((ids, vectors[:, None]) for ids, vectors in store.texts.iterate_vectors(after_id))

    def read_vectors(ids: np.ndarray) -> np.ndarray:
        return store.texts.read_vectors(ids)[:, None]

    root = store.folder / CACHE_FOLDER / "texts"
    ids = store.texts.list_ids()
    table = FollowedTable(root, store.texts.version, ids, batches, read_vectors, 1, store.manifest.embed_dim)
    return _open(table, kind, device)


def open_caption_index(store: Store, kind: str = "fp16", device: str = "auto") -> SlotIndex:
    """Open the index of a store's captions by their ids, which has one slot; see `open_photo_index`."""
    ids, _ = store.captions.list_ids_and_photos()

    def batches(after_id: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        later_ids = ids[np.searchsorted(ids, after_id, side="right") :]
        for start in range(0, len(later_ids), _SEGMENT_ROWS):
            part = later_ids[start : start + _SEGMENT_ROWS]
            yield part, read_vectors(part)

    def read_vectors(part: np.ndarray) -> np.ndarray:
        return store.captions.read_vectors(part)[:, None]

    root = store.folder / CACHE_FOLDER / "captions"
    version, width = store.captions.version, store.manifest.embed_dim
    return _open(FollowedTable(root, version, ids, batches, read_vectors, 1, width), kind, device)


def _open(table: FollowedTable, kind: str, device: str) -> SlotIndex:
    shape = (table.num_slots, table.width)
    index = SlotIndex(*shape, kind, device, read_vectors=table.read_vectors if kind == "int8" else None)
    saved = segment_files.load_segments(table.root, *shape, kind)
    if saved is None or not _can_go_on(saved, table):
        saved = segment_files.SavedSegments(-1, [], [])
    index.segments = list(saved.segments)
    if saved.version == table.version and len(index) == len(table.ids):
        return index
    after_id = int(table.ids[len(index) - 1]) if len(index) else -1
    with segment_files.open_segment_writer(table.root, saved.names) as writer:
        for ids, vectors in table.batches(after_id):
            index.add(ids, vectors)
            if len(index.segments[-1]) >= _SEGMENT_ROWS:
                index.segments[-1] = writer.keep(index.segments[-1])
        if index.segments and not index.segments[-1].frozen:
            index.segments[-1] = writer.keep(index.segments[-1])
        writer.publish(table.version, *shape, kind)
    return index


def _can_go_on(saved: segment_files.SavedSegments, table: FollowedTable) -> bool:
    """Return whether the saved segments hold the first rows of the table, and do so in few pieces."""
    ids = np.concatenate([np.zeros(0, np.int64), *(segment.ids for segment in saved.segments)])
    if not np.array_equal(ids, table.ids[: len(ids)]):
        return False
    pieces = sum(len(segment) < _SEGMENT_ROWS for segment in saved.segments)
    if pieces >= _MAX_PIECES and len(ids) < len(table.ids):
        return False
    for segment in saved.segments:
        rows = np.unique(np.linspace(0, len(segment) - 1, _CHECKED_ROWS).astype(np.int64))
        difference = segment.reconstruct(rows) - table.read_vectors(segment.ids[rows])
        if not np.linalg.norm(difference, axis=2).max() <= segment.rounding + NOISE:
            return False
    return True
