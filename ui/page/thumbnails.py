"""Small square pictures for the page, kept on disk so that each photo is decoded for them once.

They lie beneath the index, named by the photo's content: a moved photo keeps its own, a changed one gets
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

SIDE = 400  # pixels; a tile is about 200 wide, on a screen of two pixels a point
LARGE_SIDE = 1600


def get_thumbnail(photo: Photo, index: Path) -> bytes:
    """A square WebP picture, SIDE pixels wide, cut from the photo's middle.

    Comes from the disk where it was made before, even when the photo has gone since. Raises PhotoError.
    """
    cached = index / "thumbnails" / photo.digest[:2] / f"{photo.digest}-{SIDE}.webp"
    try:
        return cached.read_bytes()
    except OSError:
        pass
    picture = _first_readable(photo, least_side=2 * SIDE)
    data = _encoded(ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.LANCZOS, centering=(0.5, 0.4)))
    _keep(cached, data)
    return data


def read_large_picture(photo: Photo) -> bytes:
    """The whole photo as WebP, upright, at most LARGE_SIDE pixels on its longer side; raises PhotoError."""
    picture = _first_readable(photo, least_side=LARGE_SIDE)
    picture.thumbnail((LARGE_SIDE, LARGE_SIDE), Image.Resampling.LANCZOS)
    return _encoded(picture)


def is_there(photo: Photo) -> bool:
    """Whether any of the photo's files still lies where it was indexed."""
    return any(os.path.exists(path) for path in photo.paths)


def _first_readable(photo: Photo, least_side: int) -> Image.Image:
    """Open the photo at the first of its places where it can be read. Raises PhotoError."""
    if not photo.paths:
        raise PhotoError(VANISHED)
    picture = read_first_readable(photo.paths, lambda path: open_picture(path, least_side=least_side))
    if isinstance(picture, Failure):
        raise PhotoError(picture.reason)
    return picture


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82, method=2)
    return buffer.getvalue()


def _keep(cached: Path, data: bytes) -> None:
    """Write it in one step, so that another session never reads half of it; a read-only index keeps none."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(cached, shared=True) as file:
            file.write(data)
    except OSError:
        return
