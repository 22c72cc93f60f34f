"""A picture of four colours whose corners show which way up it came, and how EXIF stores it turned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def draw_quarters(width: int = 96, height: int = 64) -> Image.Image:
    """Red and green above, blue and yellow below: every turn and mirror image differs."""
    picture = Image.new("RGB", (width, height))
    for number, colour in enumerate((RED, GREEN, BLUE, YELLOW)):
        box = (number % 2 * width // 2, number // 2 * height // 2)
        picture.paste(colour, (*box, box[0] + width // 2, box[1] + height // 2))
    return picture


def read_quarter_colours(picture: Image.Image | np.ndarray) -> list[tuple[int, ...]]:
    """The middle of each quarter, row by row."""
    pixels_HWC = np.asarray(picture)
    height, width, _ = pixels_HWC.shape
    at = [(y * height // 4, x * width // 4) for y in (1, 3) for x in (1, 3)]
    return [tuple(int(value) for value in pixels_HWC[y, x]) for y, x in at]


def assert_near(
    colours: list[tuple[int, ...]], expected: Sequence[tuple[int, ...]], tolerance: int = 6
) -> None:
    assert np.abs(np.array(colours) - np.array(expected)).max() <= tolerance, (colours, expected)


def make_orientation_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# How a camera that was held so stores the upright picture; EXIF 2.32, Orientation.
STORED_AS = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
