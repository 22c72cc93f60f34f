"""Decode many pictures in threads and squash them to the square that the encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from engine.datasets.captioned_pictures import CaptionedPicture
from engine.errors import DataError, PhotoError
from engine.pictures.opening import open_picture
from engine.pictures.squares import squash
from engine.types import Failure


def read_pictures(samples: Sequence[CaptionedPicture], size: int) -> list[np.ndarray | None]:
    """Decode and squash some pictures, in threads -> uint8 (size, size, 3) each, None for one that cannot be read."""
    return [one if isinstance(one, np.ndarray) else None for one in _decoded(samples, size)]


def _decoded(samples: Sequence[CaptionedPicture], size: int) -> list[np.ndarray | Failure]:
    def decode(sample: CaptionedPicture) -> np.ndarray | Failure:
        try:
            return squash(open_picture(sample.picture), size)
        except PhotoError as error:
            return Failure(Path(sample.key), str(error))

    with ThreadPoolExecutor(4) as pool:  # Pillow decodes without holding the interpreter's lock
        return list(pool.map(decode, samples))


def load_pictures(
    samples: Sequence[CaptionedPicture], size: int
) -> tuple[np.ndarray, list[CaptionedPicture], list[Failure]]:
    """Decode and squash every picture -> uint8 (N, size, size, 3), the samples they belong to, what failed."""
    decoded = _decoded(samples, size)
    kept = [s for s, d in zip(samples, decoded, strict=True) if isinstance(d, np.ndarray)]
    pictures = [d for d in decoded if isinstance(d, np.ndarray)]
    if not pictures:
        raise DataError(f"None of the {len(samples)} pictures could be read.")
    return np.stack(pictures), kept, [d for d in decoded if isinstance(d, Failure)]
