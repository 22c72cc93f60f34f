"""A picture of any EXIF orientation comes out upright, and damaged EXIF does not cost the photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from corners import (
    BLUE,
    GREEN,
    RED,
    STORED_AS,
    YELLOW,
    assert_near,
    draw_quarters,
    make_orientation_exif,
    read_quarter_colours,
)
from PIL import Image

from engine.pictures.opening import open_picture
from indexer.decode import decode


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_all_orientations_come_out_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](np.asarray(draw_quarters()))))
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=make_orientation_exif(orientation))
    picture = open_picture(path)
    assert picture.size == (96, 64)
    assert_near(read_quarter_colours(picture), [RED, GREEN, BLUE, YELLOW], tolerance=12)
    decoded = decode(path, 16)
    assert (decoded.width, decoded.height) == (96, 64)
    assert_near(read_quarter_colours(decoded.pixels), [RED, GREEN, BLUE, YELLOW], tolerance=12)


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_an_orientation_out_of_range_is_upright(tmp_path: Path, orientation: int) -> None:
    draw_quarters().save(tmp_path / "a.jpg", exif=make_orientation_exif(orientation))
    assert_near(read_quarter_colours(open_picture(tmp_path / "a.jpg")), [RED, GREEN, BLUE, YELLOW])


def test_damaged_exif_does_not_cost_the_photo(tmp_path: Path) -> None:
    draw_quarters().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f rubbish")
    assert_near(read_quarter_colours(open_picture(tmp_path / "a.jpg")), [RED, GREEN, BLUE, YELLOW])
