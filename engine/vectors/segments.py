"""FAISS on the CPU: a segment holds some photos, one inner-product index for each query slot.

S slots, E embedding, N rows, M queries, K hits. A segment is filled in memory, then frozen: what is read
from a file is mapped into memory and must not grow (FAISS aborts the process when it is asked to).
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
    """Rows with ids, in S indexes of one kind; row i is the same photo in every slot."""

    def __init__(
        self, slots: list[Any], kind: str, ids: np.ndarray, rounding: float, *, frozen: bool
    ) -> None:
        self.slots = slots
        self.kind = kind
        self.ids = ids
        self.rounding = rounding  # no score is further than this from the true one; 0 but for "int8"
        self.frozen = frozen

    @classmethod
    def empty(cls, num_slots: int, width: int, kind: str) -> Segment:
        slots = [_new_index(width, kind) for _ in range(num_slots)]
        return cls(slots, kind, np.zeros(0, np.int64), 0.0, frozen=False)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: np.ndarray, vectors_NSE: np.ndarray) -> None:
        """Append rows. The 8-bit kind learns its ranges from the first rows that come."""
        for slot, index in enumerate(self.slots):
            self.rounding = max(self.rounding, _append(index, self.kind, vectors_NSE[:, slot]))
        self.ids = np.concatenate([self.ids, ids])

    def search(
        self, slot: int, queries_ME: np.ndarray, k: int, selector: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids_MK, scores_MK) best first; k <= the number of rows that the selector lets through."""
        parameters = faiss.SearchParameters()
        parameters.sel = selector
        scores, rows = self.slots[slot].search(queries_ME, k, params=parameters)
        return self.ids[rows], scores

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """Vectors (N, S, E) float32 as the index holds them: exact but for "int8"."""
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        return np.stack([index.reconstruct_batch(rows) for index in self.slots], axis=1)

    def write(self, folder: Path) -> list[Path]:
        """Write a file a slot; the paths. Raises RuntimeError when the disk is full."""
        paths = [folder / _SLOT_FILE.format(slot) for slot in range(len(self.slots))]
        for index, path in zip(self.slots, paths, strict=True):
            faiss.write_index(index, str(path))
        return paths

    @classmethod
    def read(
        cls, folder: Path, num_slots: int, width: int, kind: str, ids: np.ndarray, rounding: float
    ) -> Segment:
        """Map the files of `write`. Raises RuntimeError or ValueError when they are damaged."""
        slots = []
        for slot in range(num_slots):
            path = folder / _SLOT_FILE.format(slot)
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            want = _new_index(width, kind)
            same_code = getattr(index, "code_size", -1) == want.code_size
            inner_product = index.metric_type == want.metric_type
            same_size = index.d == width and index.ntotal == len(ids)
            if not (type(index) is type(want) and same_code and inner_product and same_size):
                raise ValueError(
                    f"{path} holds {index.ntotal} vectors of width {index.d}, not what was saved"
                )
            slots.append(index)
        return cls(slots, kind, ids, rounding, frozen=True)


def bitmap_selector(mask_N: np.ndarray) -> Any:
    """FAISS' selector of the rows where the mask is True."""
    bits = np.packbits(mask_N, bitorder="little")
    selector: Any = faiss.IDSelectorBitmap(len(mask_N), faiss.swig_ptr(bits))
    selector.bits = bits  # FAISS keeps only the address
    return selector


def _new_index(width: int, kind: str) -> Any:
    if kind == "flat":
        return faiss.IndexFlatIP(width)
    quantizer = {"fp16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}[kind]
    return faiss.IndexScalarQuantizer(width, quantizer, faiss.METRIC_INNER_PRODUCT)


def _append(index: Any, kind: str, vectors_NE: np.ndarray) -> float:
    """Append rows; how far a score with a unit query may be off: |<q, v - v'>| <= ||v - v'||."""
    if kind == "fp16":  # its codes are the half floats themselves: no need to widen them first
        index.add_sa_codes(np.ascontiguousarray(vectors_NE, dtype="<f2").view(np.uint8))
        return 0.0
    vectors = np.ascontiguousarray(vectors_NE, dtype=np.float32)
    if not index.is_trained:
        # QT_8bit cuts off what lies outside the range it has seen, which rows that come later may:
        # so a quarter more, and no less than four times 1/sqrt(E), a unit vector's usual component
        room = np.full((1, index.d), 4 / np.sqrt(index.d), np.float32)
        index.train(np.concatenate([1.25 * vectors[:_TRAINING_ROWS], room, -room]))
    index.add(vectors)
    if kind == "flat":
        return 0.0
    kept = index.reconstruct_n(index.ntotal - len(vectors), len(vectors))
    return float(np.linalg.norm(vectors - kept, axis=1).max())
