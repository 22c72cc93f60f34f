"""Cut a random crop from a picture, squash it to a square and mirror half of the crops, as LAVIS pretrains BLIP-2."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

Augment = Callable[[Image.Image, np.random.Generator], np.ndarray]
"""A function that turns a picture into uint8 pixels (H, W, 3), with random numbers from a generator."""


def make_random_crop(size: int, min_area: float = 0.5) -> Augment:
    """Return a function that cuts a random crop, squashes it to a square, and mirrors it half of the time.

    LAVIS pretrains BLIP-2 in this way (bicubic; torchvision's RandomResizedCrop draws alike).
    size: side of the square in pixels. min_area: smallest share of the picture's area that a crop has, up to 1.
    """

    def augment(picture: Image.Image, draws: np.random.Generator) -> np.ndarray:
        box = draw_crop_box(picture.size, min_area, draws)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
        if draws.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(picture, dtype=np.uint8)

    return augment


def draw_crop_box(
    size: tuple[int, int], min_area: float, draws: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop of `min_area` to all of a picture's area, with sides from 3:4 to 4:3.

    size: width and height of the picture in pixels. Returns (left, top, right, bottom). When ten draws do not fit into
    the picture, the crop is the largest central one between 3:4 and 4:3.
    """
    width, height = size
    for _ in range(10):
        area = width * height * draws.uniform(min_area, 1.0)
        ratio = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(draws.integers(width - crop_width + 1))
            top = int(draws.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width, crop_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height
