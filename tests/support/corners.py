"""A picture of four colours that shows how it was turned or mirrored, and the eight EXIF orientations of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def draw_quarters(width: int = 96, height: int = 64) -> Image.Image:
    """Draw a picture of red and green above blue and yellow: every turn and every mirror image of it differs."""
    picture = Image.new("RGB", (width, height))
    for number, colour in enumerate((RED, GREEN, BLUE, YELLOW)):
        box = (number % 2 * width // 2, number // 2 * height // 2)
        picture.paste(colour, (*box, box[0] + width // 2, box[1] + height // 2))
    return picture


def read_quarter_colours(picture: Image.Image | np.ndarray) -> list[tuple[int, ...]]:
    """Return the colours in the middle of the four quarters of a picture, row by row."""
    pixels_HWC = np.asarray(picture)
    height, width, _ = pixels_HWC.shape
    middles = [(y * height // 4, x * width // 4) for y in (1, 3) for x in (1, 3)]
    return [tuple(int(value) for value in pixels_HWC[y, x]) for y, x in middles]


def assert_near(
    colours: list[tuple[int, ...]], expected: Sequence[tuple[int, ...]], tolerance: int = 6
) -> None:
    """Check that no channel of a colour differs from the expected one by more than `tolerance`."""
    assert np.abs(np.array(colours) - np.array(expected)).max() <= tolerance, (colours, expected)


def make_orientation_exif(orientation: int) -> Image.Exif:
    """Return EXIF data that hold an orientation, 1 to 8, and nothing else."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


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
"""EXIF orientation -> a function that turns an upright picture into the pixels that a camera stores (EXIF 2.32)."""
