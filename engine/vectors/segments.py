"""Hold some photos in FAISS on the CPU, as a segment with one inner-product index for each slot.

A segment is filled in memory and then frozen: a segment that was read from files is mapped into memory and must not
grow, since FAISS aborts the process when it is asked to. Shapes: S slots, E embedding, N rows, M texts, K hits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

KINDS = ("flat", "fp16", "int8")
_TRAINING_ROWS = 16384
_SLOT_FILE = "slot-{:02d}.faiss"


class Segment:
    """Rows with ids in S FAISS indexes of one kind; row i is the same photo in every slot.

    rounding: no score is further than this from the true one; it is 0 except for "int8". frozen: whether the segment
    must not grow.
    """

    def __init__(
        self, slots: list[Any], kind: str, ids: np.ndarray, rounding: float, *, frozen: bool
    ) -> None:
        self.slots = slots
        self.kind = kind
        self.ids = ids
        self.rounding = rounding
        self.frozen = frozen

    @classmethod
    def empty(cls, num_slots: int, width: int, kind: str) -> Segment:
        """Make a segment without rows."""
        slots = [_new_index(width, kind) for _ in range(num_slots)]
        return cls(slots, kind, np.zeros(0, np.int64), 0.0, frozen=False)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: np.ndarray, vectors_NSE: np.ndarray) -> None:
        """Append rows. The kind "int8" learns its ranges of values from the first rows."""
        for slot, index in enumerate(self.slots):
            self.rounding = max(self.rounding, _append(index, self.kind, vectors_NSE[:, slot]))
        self.ids = np.concatenate([self.ids, ids])

    def search(
        self, slot: int, queries_ME: np.ndarray, k: int, selector: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search one slot; return ids (M, K) and scores (M, K), the best first.

        k: at most the number of rows that the selector lets through.
        """
        parameters = faiss.SearchParameters()
        parameters.sel = selector
        scores, rows = self.slots[slot].search(queries_ME, k, params=parameters)
        return self.ids[rows], scores

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors (N, S, E) float32 of rows as the index holds them; they are rounded for "int8"."""
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        return np.stack([index.reconstruct_batch(rows) for index in self.slots], axis=1)

    def write(self, folder: Path) -> list[Path]:
        """Write a file for each slot and return the paths. Raises RuntimeError when the disk is full."""
        paths = [folder / _SLOT_FILE.format(slot) for slot in range(len(self.slots))]
        for index, path in zip(self.slots, paths, strict=True):
            faiss.write_index(index, str(path))
        return paths

    @classmethod
    def read(
        cls, folder: Path, num_slots: int, width: int, kind: str, ids: np.ndarray, rounding: float
    ) -> Segment:
        """Map the files of `write` into memory. Raises RuntimeError or ValueError when they are damaged."""
        slots = []
        for slot in range(num_slots):
            path = folder / _SLOT_FILE.format(slot)
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            expected = _new_index(width, kind)
            has_code = getattr(index, "code_size", -1) == expected.code_size
            has_metric = index.metric_type == expected.metric_type
            has_size = index.d == width and index.ntotal == len(ids)
            if not (type(index) is type(expected) and has_code and has_metric and has_size):
                raise ValueError(
                    f"{path} holds {index.ntotal} vectors of width {index.d}, which is not what was saved."
                )
            slots.append(index)
        return cls(slots, kind, ids, rounding, frozen=True)


def bitmap_selector(mask_N: np.ndarray) -> Any:
    """Return FAISS' selector of the rows where the mask is True."""
    bits = np.packbits(mask_N, bitorder="little")
    selector: Any = faiss.IDSelectorBitmap(len(mask_N), faiss.swig_ptr(bits))
    selector.bits = bits  # FAISS keeps only the address, so the bits must live as long as the selector.
    return selector


def _new_index(width: int, kind: str) -> Any:
    if kind == "flat":
        return faiss.IndexFlatIP(width)
    quantizer = {"fp16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}[kind]
    return faiss.IndexScalarQuantizer(width, quantizer, faiss.METRIC_INNER_PRODUCT)


def _append(index: Any, kind: str, vectors_NE: np.ndarray) -> float:
    """Append rows; return how far a score with a unit vector may be off, since |<q, v - v'>| <= ||v - v'||."""
    if kind == "fp16":
        # The codes of this kind are the half floats themselves, which need not be widened first.
        index.add_sa_codes(np.ascontiguousarray(vectors_NE, dtype="<f2").view(np.uint8))
        return 0.0
    vectors = np.ascontiguousarray(vectors_NE, dtype=np.float32)
    if not index.is_trained:
        # QT_8bit cuts off values outside the range that it was trained on, and later rows may hold such values. So the
        # range is a quarter wider, and at least four times 1 / sqrt(E), the usual component of a unit vector.
        room = np.full((1, index.d), 4 / np.sqrt(index.d), np.float32)
        index.train(np.concatenate([1.25 * vectors[:_TRAINING_ROWS], room, -room]))
    index.add(vectors)
    if kind == "flat":
        return 0.0
    rounded = index.reconstruct_n(index.ntotal - len(vectors), len(vectors))
    return float(np.linalg.norm(vectors - rounded, axis=1).max())
