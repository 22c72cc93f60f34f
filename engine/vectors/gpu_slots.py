"""Keep a copy of the slots on a GPU; a search that it cannot serve goes to the segments on the CPU.

FAISS on a GPU gives at most 2048 hits, has no selectors for flat indexes, and cannot remove rows. So rows that may not
be found are fetched as well and dropped; when they are too many for the limit, the copy is made again without them.
Scores are rounded to half floats, so hits are scored again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from engine.vectors.segments import Segment

MAX_HITS = 2048
_TEMPORARY_BYTES = 256 << 20  # FAISS would take 1.5 GB of the GPU's memory, which the model needs.
_UPLOAD_ROWS = 16384
_HALF_ROUNDING = 2.0**-10  # A unit vector and the stored vectors are each rounded by up to 2^-11.


@dataclass(frozen=True)
class DeviceView:
    """The rows of a copy on the GPU that may be found; see `SlotView`.

    slots: FAISS' indexes. ids: of all rows in the copy. allowed: which of these rows may be found.
    """

    slots: list[Any]
    ids: np.ndarray
    allowed: np.ndarray
    count: int
    rounding: float

    def search(self, slot: int, queries_ME: np.ndarray, fetch: int) -> tuple[np.ndarray, np.ndarray]:
        """Search one slot; return ids (M, F) and scores (M, F), the best first, with F = min(fetch, count)."""
        num_hits = min(fetch, self.count)
        num_fetched = num_hits + len(self.ids) - self.count
        scores, rows = self.slots[slot].search(queries_ME, num_fetched)
        # A stable sort brings the allowed rows to the front and keeps their order.
        front = np.argsort(~self.allowed[rows], axis=1, kind="stable")[:, :num_hits]
        return self.ids[np.take_along_axis(rows, front, axis=1)], np.take_along_axis(scores, front, axis=1)


class DeviceCopy:
    """Flat inner-product indexes on the first GPU, one for each slot, of half floats unless the kind is "flat"."""

    def __init__(self, num_slots: int, width: int, kind: str) -> None:
        self._shape = (num_slots, width)
        self._kind = kind
        self._resources: Any = None
        self._slots: list[Any] = []
        # The numbers of the rows on the GPU, counted over all segments one after the other.
        self._rows = np.zeros(0, np.int64)
        self._state: list[tuple[Segment, int]] = []

    def view(
        self, segments: Sequence[Segment], masks: Sequence[np.ndarray | None], fetch: int
    ) -> DeviceView | None:
        """Return the rows that the masks let through, None when the GPU cannot search them for so many hits."""
        parts = [
            np.ones(len(segment), bool) if mask is None else mask
            for segment, mask in zip(segments, masks, strict=True)
        ]
        mask = np.concatenate([np.zeros(0, bool), *parts])
        count = int(mask.sum())
        state = [(segment, len(segment)) for segment in segments]
        if min(fetch, count) > MAX_HITS:
            return None
        if state != self._state:
            self._upload(segments, np.arange(len(mask)))
            self._state = state
        allowed = mask[self._rows]
        hidden = len(allowed) - int(allowed.sum())
        if int(allowed.sum()) < count or min(fetch, count) + hidden > MAX_HITS:
            self._upload(segments, np.flatnonzero(mask))
            allowed = mask[self._rows]
        ids = np.concatenate([np.zeros(0, np.int64), *(segment.ids for segment in segments)])[self._rows]
        rounding = max((segment.rounding for segment in segments), default=0.0) + _HALF_ROUNDING
        return DeviceView(self._slots, ids, allowed, count, rounding)

    def _upload(self, segments: Sequence[Segment], rows: np.ndarray) -> None:
        if self._resources is None:
            self._resources = _new_resources()
        self._slots = [_new_index(self._resources, self._shape[1], self._kind) for _ in range(self._shape[0])]
        self._rows = rows
        start = 0
        for segment in segments:
            inside = rows[(rows >= start) & (rows < start + len(segment))] - start
            for first in range(0, len(inside), _UPLOAD_ROWS):
                part = np.ascontiguousarray(inside[first : first + _UPLOAD_ROWS])
                for source, target in zip(segment.slots, self._slots, strict=True):
                    target.add(source.reconstruct_batch(part))
            start += len(segment)


def _new_resources() -> Any:
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_TEMPORARY_BYTES)
    return resources


def _new_index(resources: Any, width: int, kind: str) -> Any:
    config = faiss.GpuIndexFlatConfig()
    config.device = 0
    config.useFloat16 = kind != "flat"
    return faiss.GpuIndexFlatIP(resources, width, config)
