"""Squash a picture to the square that the image encoder reads.

The worker processes of indexing import this module, so it needs numpy and Pillow alone.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def squash(picture: Image.Image, size: int) -> np.ndarray:
    """Squash an RGB picture of any size to a square by bicubic resampling, without a crop, as BLIP-2's evaluation does.

    Returns uint8 (size, size, 3).
    """
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(picture, dtype=np.uint8)
