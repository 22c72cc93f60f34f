"""Match a text with candidate photos by ITM, from keys that are held, patches that are kept, or files read now.

Shapes: N photos, P patches, V vision width, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

SLOW_SECONDS = 2.0


def in_parts(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def best_first(scores: np.ndarray) -> np.ndarray:
    """Rows by score; equal ones as they were, which is ITC's order."""
    return np.argsort(-scores, kind="stable")
