"""Search the captions of an index as texts: the captions nearest to a text name photos that ITC alone would leave out.

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


def reopen_if_changed(
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
    """A search over the captions that a store holds now."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._index: tuple[int, SlotIndex] | None = None

    def close(self) -> None:
        """End the threads of the FAISS index. A later question opens it again."""
        if self._index is not None:
            self._index[1].close()
        self._index = None

    def find_nearest(self, text_E: np.ndarray, k: int, live: np.ndarray) -> np.ndarray:
        """Return the ids of the photos whose captions are the k nearest to a text's unit vector, the nearest first.

        live: the ids of the photos that may be found.
        """
        ids, photos = self.store.captions.list_ids_and_photos()
        if not len(ids) or k == 0:
            return np.zeros(0, np.int64)
        version = self.store.captions.version
        self._index = reopen_if_changed(version, self._index, lambda: open_caption_index(self.store))
        caption_ids, _ = self._index[1].search(text_E[None], k, ids[np.isin(photos, live)])
        return photos[np.searchsorted(ids, caption_ids[0][caption_ids[0] >= 0])]

    def compute_cosines(self, text_E: np.ndarray, photo_ids: np.ndarray) -> np.ndarray:
        """Return the cosines (N,) float32 of a text's unit vector with each photo's caption.

        A photo without a caption gets the mean of the others, which neither helps nor harms it; all are 0 when no photo
        has a caption.
        """
        ids, photos = self.store.captions.list_ids_and_photos()
        order = np.argsort(photos, kind="stable")
        places = np.searchsorted(photos, photo_ids, sorter=order)
        has_caption = np.isin(photo_ids, photos)
        cosines = np.zeros(len(photo_ids), np.float32)
        if has_caption.any():
            vectors = self.store.captions.read_vectors(ids[order[places[has_caption]]]).astype(np.float32)
            cosines[has_caption] = vectors @ text_E
            cosines[~has_caption] = cosines[has_caption].mean()
        return cosines

    def add_captions(self, hits: Sequence[Hit]) -> tuple[Hit, ...]:
        """Return hits with the captions that the index keeps."""
        captions = self.store.captions.read_captions([hit.photo.id for hit in hits])
        return tuple(replace(hit, caption=captions.get(hit.photo.id)) for hit in hits)
