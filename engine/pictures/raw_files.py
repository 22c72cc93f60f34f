"""Open a camera's RAW file by the preview that the camera stored in it or, where that is small, by developing it."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from engine.errors import PhotoError
from engine.pictures.exif import ORIENTATION_TAG, turn_upright
from engine.pictures.formats import PILLOW_FORMATS
from engine.pictures.pillow_files import check_size, open_with_pillow, pillow_settings

RAW_MISSING = "RAW pictures need an extra: pip install 'qseek[raw]'"
RAW_FLIP_TO_ORIENTATION = {3: 3, 5: 8, 6: 6}  # The keys are values of libraw_image_sizes_t.flip of LibRaw.
LEAST_PREVIEW_SIDE = 480  # In pixels; a smaller preview is a thumbnail for the camera's screen.


def open_raw(data: bytes, max_pixels: int, least_side: int | None) -> tuple[Image.Image, int, int]:
    """Return the upright picture of a RAW file's bytes, with the full width and height of the photo in pixels.

    The picture is the camera's own preview where that is large enough, else the RAW data developed at half size.
    max_pixels, least_side: see `opening.open_picture`. Raises PhotoError, also when rawpy is not installed.
    """
    try:
        import rawpy
    except ImportError:
        raise PhotoError(RAW_MISSING) from None
    with rawpy.imread(io.BytesIO(data)) as raw:
        width, height = raw.sizes.width, raw.sizes.height
        check_size(width, height, max_pixels)
        orientation = RAW_FLIP_TO_ORIENTATION.get(raw.sizes.flip, 1)
        picture = _raw_preview(raw, orientation, max_pixels, least_side)
        if picture is None or min(picture.size) < min(LEAST_PREVIEW_SIDE, width, height):
            picture = Image.fromarray(
                raw.postprocess(half_size=True, use_camera_wb=True)
            )  # It comes out upright.
    return (picture, height, width) if orientation >= 5 else (picture, width, height)


def _raw_preview(raw: Any, orientation: int, max_pixels: int, least_side: int | None) -> Image.Image | None:
    """Return the picture that the camera put into the RAW file, turned upright; None when there is none."""
    import rawpy

    try:
        preview = raw.extract_thumb()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        return None
    if preview.format != rawpy.ThumbFormat.JPEG:
        return turn_upright(Image.fromarray(preview.data), orientation)
    # Some cameras write the orientation into the preview as well, others into the RAW file alone.
    with pillow_settings, Image.open(io.BytesIO(preview.data), formats=PILLOW_FORMATS) as stored:
        is_turned_by_exif = ORIENTATION_TAG in stored.getexif()
    picture = open_with_pillow(preview.data, max_pixels, least_side)[0]
    return picture if is_turned_by_exif else turn_upright(picture, orientation)
