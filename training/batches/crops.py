"""Cut a random crop from a picture, squash it to a square and mirror half of them, as LAVIS pretrains BLIP-2."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

Augment = Callable[[Image.Image, np.random.Generator], np.ndarray]


def make_random_crop(size: int, smallest: float = 0.5) -> Augment:
    """A crop of `smallest` to all of the area, of 3:4 to 4:3, squashed to a square; mirrored half of the time.

    As LAVIS pretrains BLIP-2 (bicubic; torchvision's RandomResizedCrop draws alike). size: pixels of the square.
    """

    def augment(picture: Image.Image, draws: np.random.Generator) -> np.ndarray:
        picture = picture.resize(
            (size, size), Image.Resampling.BICUBIC, box=draw_crop_box(picture.size, smallest, draws)
        )
        if draws.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(picture, dtype=np.uint8)

    return augment


def draw_crop_box(
    size: tuple[int, int], smallest: float, draws: np.random.Generator
) -> tuple[int, int, int, int]:
    """left, top, right, bottom of a random crop; the largest central one when ten draws do not fit."""
    width, height = size
    for _ in range(10):
        area = width * height * draws.uniform(smallest, 1.0)
        ratio = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
