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
"""Number of pictures that are given to the threads at a time; all threads are waited for at the end of a batch."""


def read_pictures(pictures: Sequence[CaptionedPicture], size: int) -> list[np.ndarray | None]:
    """Decode and squash pictures in threads -> a uint8 (size, size, 3) each, None for one that cannot be read."""
    return [square if isinstance(square, np.ndarray) else None for square in _decode(pictures, size)]


def load_pictures(
    pictures: Sequence[CaptionedPicture], size: int
) -> tuple[np.ndarray, list[CaptionedPicture], list[Failure]]:
    """Decode and squash every picture of a set.

    Return uint8 (N, size, size, 3), the N pictures that could be read, in order, and a Failure for each of the others.
    Raise DataError when none could be read.
    """
    decoded = list(_decode(pictures, size))
    readable = [
        picture for picture, square in zip(pictures, decoded, strict=True) if isinstance(square, np.ndarray)
    ]
    squares = [square for square in decoded if isinstance(square, np.ndarray)]
    if not squares:
        raise DataError(f"None of the {len(pictures)} pictures could be read.")
    return np.stack(squares), readable, [failure for failure in decoded if isinstance(failure, Failure)]


def _decode(pictures: Sequence[CaptionedPicture], size: int) -> Iterator[np.ndarray | Failure]:
    """Yield for each picture, in order, its square as uint8 (size, size, 3), or a Failure that says why not."""

    def decode(picture: CaptionedPicture) -> np.ndarray | Failure:
        try:
            return squash(open_picture(picture.picture), size)
        except PhotoError as error:
            return Failure(Path(picture.key), str(error))

    for squares in read_batches(pictures, decode, BATCH_SIZE):
        yield from squares
