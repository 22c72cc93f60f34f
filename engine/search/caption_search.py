"""Captions of an index searched as texts: a text's nearest captions name photos that ITC alone would leave out.

Shapes: N photos, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from engine.index.store import Store
from engine.types import Hit
from engine.vectors.slot_index import SlotIndex
from engine.vectors.table_indexes import open_caption_index


def opened_at(
    version: int, opened: tuple[int, SlotIndex] | None, open_index: Callable[[], SlotIndex]
) -> tuple[int, SlotIndex]:
    """Return a table's version and the index that follows it: the one that is open, or, for another version, a new one.

    opened: the version and the index that were opened last; the index is closed when it is not returned.
    """
    if opened is not None and opened[0] == version:
        return opened
    if opened is not None:
        opened[1].close()
    return version, open_index()


class CaptionSearch:
    """Over the captions of one store, whatever it holds now."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._index: tuple[int, SlotIndex] | None = None

    def close(self) -> None:
        """End the threads of the FAISS index; a question that comes after that opens it again."""
        if self._index is not None:
            self._index[1].close()
        self._index = None

    def nearest(self, text_E: np.ndarray, k: int, live: np.ndarray) -> np.ndarray:
        """Ids of the photos among `live` whose captions are the k nearest to a text's unit vector, nearest first."""
        ids, photos = self.store.captions.list_ids_and_photos()
        if not len(ids) or k == 0:
            return np.zeros(0, np.int64)
        version = self.store.captions.version
        self._index = opened_at(version, self._index, lambda: open_caption_index(self.store))
        found, _ = self._index[1].search(text_E[None], k, ids[np.isin(photos, live)])
        return photos[np.searchsorted(ids, found[0][found[0] >= 0])]

    def cosines(self, text_E: np.ndarray, photo_ids: np.ndarray) -> np.ndarray:
        """Of a text's unit vector with each photo's caption (N,) float32; a photo without one gets the others' mean,
        which neither helps nor harms it, 0 where none has one."""
        ids, photos = self.store.captions.list_ids_and_photos()
        order = np.argsort(photos, kind="stable")
        places = np.searchsorted(photos, photo_ids, sorter=order)
        has = np.isin(photo_ids, photos)
        cosines = np.zeros(len(photo_ids), np.float32)
        if has.any():
            vectors = self.store.captions.read_vectors(ids[order[places[has]]]).astype(np.float32)
            cosines[has] = vectors @ text_E
            cosines[~has] = cosines[has].mean()
        return cosines

    def put_on(self, hits: Sequence[Hit]) -> tuple[Hit, ...]:
        """The same hits with the captions that the index keeps."""
        captions = self.store.captions.read_captions([hit.photo.id for hit in hits])
        return tuple(replace(hit, caption=captions.get(hit.photo.id)) for hit in hits)
