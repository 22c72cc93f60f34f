"""Read the EXIF orientation of a picture and turn the picture upright."""

from __future__ import annotations

from PIL import Image

ORIENTATION_TAG = 0x0112
# EXIF 2.32, tag Orientation: what turns the stored picture upright.
TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) when the tag is missing or damaged, since the picture is
    whole.
    """
    try:
        value = picture.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # EXIF blocks are damaged in many ways
        return 1
    return value if value in TO_UPRIGHT else 1


def turn_upright(picture: Image.Image, orientation: int) -> Image.Image:
    """Turn or mirror a picture as its EXIF orientation (1 to 8) says, so that it stands upright."""
    return picture.transpose(TO_UPRIGHT[orientation]) if orientation in TO_UPRIGHT else picture
