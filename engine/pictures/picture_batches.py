"""Read many pictures in threads, a batch at a time. Pillow decodes without holding the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from engine.pictures.opening import read_square
from engine.types import Failure

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_batches(
    items: Iterable[Item], read: Callable[[Item], Result], batch_size: int
) -> Iterator[list[Result]]:
    """Yield `read(item)` of all items, in their order, in lists of `batch_size`; the last list may be shorter.

    A batch is read in threads when it is asked for, so that only one batch is in memory and no further item is drawn.
    An exception of `read` is raised here.
    """
    waiting = iter(items)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(waiting, batch_size)):
            yield list(pool.map(read, batch))


def read_squares(
    photos: Iterable[Sequence[Path]], size: int, batch_size: int
) -> Iterator[list[np.ndarray | Failure]]:
    """Yield photos squashed to uint8 (size, size, 3) in lists of `batch_size`, a Failure where no file could be read.

    photos: the paths of each photo's files; the first readable one is taken. Batches are read as in `read_batches`.
    """
    return read_batches(photos, lambda paths: read_square(paths, size), batch_size)
