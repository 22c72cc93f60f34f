"""Decode many pictures of sets in threads and squash them to the square that the encoder reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from engine.datasets.captioned_pictures import CaptionedPicture
from engine.errors import DataError, PhotoError
from engine.pictures.opening import open_picture
from engine.pictures.picture_batches import read_batches
from engine.pictures.squares import squash
from engine.types import Failure

BATCH_SIZE = 256
"""Pictures that are decoded between two moments at which all threads are waited for."""


def read_pictures(samples: Sequence[CaptionedPicture], size: int) -> list[np.ndarray | None]:
    """Decode and squash some pictures, in threads -> uint8 (size, size, 3) each, None for one that cannot be read."""
    return [square if isinstance(square, np.ndarray) else None for square in _decoded(samples, size)]


def _decoded(samples: Sequence[CaptionedPicture], size: int) -> Iterator[np.ndarray | Failure]:
    def decode(sample: CaptionedPicture) -> np.ndarray | Failure:
        try:
            return squash(open_picture(sample.picture), size)
        except PhotoError as error:
            return Failure(Path(sample.key), str(error))

    for squares in read_batches(samples, decode, BATCH_SIZE):
        yield from squares


def load_pictures(
    samples: Sequence[CaptionedPicture], size: int
) -> tuple[np.ndarray, list[CaptionedPicture], list[Failure]]:
    """Decode and squash every picture -> uint8 (N, size, size, 3), the samples they belong to, what failed."""
    decoded = list(_decoded(samples, size))
    kept = [s for s, d in zip(samples, decoded, strict=True) if isinstance(d, np.ndarray)]
    pictures = [d for d in decoded if isinstance(d, np.ndarray)]
    if not pictures:
        raise DataError(f"None of the {len(samples)} pictures could be read.")
    return np.stack(pictures), kept, [d for d in decoded if isinstance(d, Failure)]
