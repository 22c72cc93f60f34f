"""Decide how many scores and captions an evaluation of retrieval holds in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import DataError
from engine.models.retrieval_model import RetrievalModel
from engine.wording import count_text

LEAST_TEXTS = 64
"""Smallest number of captions started together; with fewer, the keys of every photo would be computed too often."""


@dataclass(frozen=True)
class MemoryBudget:
    """The block sizes that fit in memory.

    score_rows: the number of rows of a block of ITC scores.
    texts: the number of captions that are started together for ITM.
    """

    score_rows: int
    texts: int


def split_memory(model: RetrievalModel, num_photos: int, num_texts: int, memory: int) -> MemoryBudget:
    """Give a quarter of the memory each to a block of scores and to the captions started together.

    memory: a number of bytes; the other half is for the passes through the model. Raise DataError when the smallest
    blocks do not fit.
    """
    qformer = model.config.qformer
    # The cosines of all queries, and the memory that sorting takes.
    row_bytes = 4 * 3 * qformer.num_queries * max(num_photos, num_texts)
    text_bytes = (qformer.num_queries + model.config.max_tokens) * qformer.width * model.dtype.itemsize
    least = 4 * max(row_bytes, LEAST_TEXTS * text_bytes)
    if memory < least:
        raise DataError(
            f"{memory / 2**20:,.0f} MiB of memory are too little for {count_text(num_photos, 'photo')} and "
            f"{count_text(num_texts, 'caption')}; give at least --memory {-(-least // 2**20)}M."
        )
    return MemoryBudget(max(1, memory // 4 // row_bytes), min(num_texts, memory // 4 // text_bytes))
