"""Squash a picture to the square that the image encoder reads.

Indexing workers import this module: it needs numpy and Pillow only.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def squash(picture: Image.Image, size: int) -> np.ndarray:
    """An RGB picture squashed to a square by bicubic resampling, as BLIP-2's evaluation does (no crop).

    picture: mode RGB, any size. Returns uint8 (size, size, 3).
    """
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(picture, dtype=np.uint8)
