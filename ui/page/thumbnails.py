"""Make small square pictures for the page, and keep them on disk so that each photo is decoded once for them.

They lie in the index's folder, named by the photo's content: a moved photo keeps its picture, a changed one gets
another.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image, ImageOps

from engine.atomic import replace_file
from engine.errors import PhotoError
from engine.pictures.opening import VANISHED, open_picture, read_first_readable
from engine.types import Failure, Photo

SIDE = 400
"""Side of a thumbnail in pixels; a tile is about 200 points wide, on a screen with two pixels a point."""
LARGE_SIDE = 1600
"""Longest side in pixels of the picture of a whole photo."""


def get_thumbnail(photo: Photo, index: Path) -> bytes:
    """Return a square WebP picture, SIDE pixels wide, that is cut from the photo's middle.

    It comes from the disk where it was made before, even when the photo has gone since. Raises PhotoError.
    """
    cached = index / "thumbnails" / photo.digest[:2] / f"{photo.digest}-{SIDE}.webp"
    try:
        return cached.read_bytes()
    except OSError:
        pass
    picture = _read_picture(photo, least_side=2 * SIDE)
    data = _encode_webp(ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.LANCZOS, centering=(0.5, 0.4)))
    _save(cached, data)
    return data


def read_large_picture(photo: Photo) -> bytes:
    """Return the whole photo as WebP, upright, at most LARGE_SIDE pixels on its longer side. Raises PhotoError."""
    picture = _read_picture(photo, least_side=LARGE_SIDE)
    picture.thumbnail((LARGE_SIDE, LARGE_SIDE), Image.Resampling.LANCZOS)
    return _encode_webp(picture)


def is_there(photo: Photo) -> bool:
    """Return whether one of the photo's files still exists."""
    return any(os.path.exists(path) for path in photo.paths)


def _read_picture(photo: Photo, least_side: int) -> Image.Image:
    """Open the first of the photo's files that can be read. Raises PhotoError."""
    if not photo.paths:
        raise PhotoError(VANISHED)
    picture = read_first_readable(photo.paths, lambda path: open_picture(path, least_side=least_side))
    if isinstance(picture, Failure):
        raise PhotoError(picture.reason)
    return picture


def _encode_webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82, method=2)
    return buffer.getvalue()


def _save(path: Path, data: bytes) -> None:
    """Save a thumbnail in one step, so that another session never reads half of it; a read-only index gets none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, shared=True) as file:
            file.write(data)
    except OSError:
        return
