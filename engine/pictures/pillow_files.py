"""Open JPEG, PNG, WebP, HEIC and the other formats that Pillow reads as upright RGB pictures.

Transparency is laid over white, grey of 16 or 32 bits becomes 8 bits, and pictures with too many pixels are refused
before they are decoded.
"""

from __future__ import annotations

import io
import threading

import numpy as np
from PIL import Image

from engine.errors import PhotoError
from engine.pictures.exif import read_orientation, turn_upright
from engine.pictures.formats import HEIC_BRANDS, PILLOW_FORMATS

HEIC_MISSING = "HEIC pictures need an extra: pip install 'qseek[heic]'"


class _PillowSettings:
    """A context that lifts Pillow's pixel limit for the whole process while at least one picture is being opened.

    Pillow warns from 89 megapixels on and refuses from 179 on, and it takes no limit for a single call; `check_size`
    enforces ours. Threads may open pictures at the same time: the limit comes back when the last of them is done.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_open = 0
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._num_open == 0:
                # Image.open(formats=...) knows only the plugins that are loaded; MPO files come through JPEG.
                Image.init()
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._num_open += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_open -= 1
            if self._num_open == 0:
                Image.MAX_IMAGE_PIXELS = self._limit


pillow_settings = _PillowSettings()


def open_with_pillow(data: bytes, max_pixels: int, least_side: int | None) -> tuple[Image.Image, int, int]:
    """Return the upright RGB picture in a file's bytes, with its full width and height in pixels.

    max_pixels, least_side: see `opening.open_picture`. Raises PhotoError, and the errors of Pillow's decoders.
    """
    formats = list(PILLOW_FORMATS)
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS and b"avif" not in data[8:64]:
        _register_heic()
        formats.append("HEIF")
    with pillow_settings, Image.open(io.BytesIO(data), formats=formats) as picture:
        width, height = picture.size
        check_size(width, height, max_pixels)
        if least_side is not None:
            picture.draft(None, (least_side, least_side))
        picture.load()
        # The orientation is read after loading: in PNG it may follow the pixels, and Pillow has turned TIFF by then.
        orientation = read_orientation(picture)
        upright = turn_upright(_to_rgb(picture), orientation)
    return (upright, height, width) if orientation >= 5 else (upright, width, height)


def _register_heic() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise PhotoError(HEIC_MISSING) from None
    register_heif_opener()


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise PhotoError for a picture of `max_pixels` pixels or more."""
    if width * height >= max_pixels:
        raise PhotoError(
            f"{width} x {height} pixels are {width * height / 1e6:.0f} megapixels: pictures from "
            f"{max_pixels / 1e6:.0f} megapixels on are refused, save a smaller copy"
        )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _to_8_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A"))
        return white
    # This copies an RGB picture as well, because the file behind `picture` is about to close.
    return picture.convert("RGB")


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Convert grey of 16 or 32 bits, or float grey in [0, 1], to mode L; where values are larger, the largest is
    white.
    """
    grey_HW = np.nan_to_num(np.asarray(picture).astype(np.float32), posinf=0, neginf=0)
    white = max(1.0 if picture.mode == "F" else 65535.0, float(grey_HW.max()))
    return Image.fromarray((grey_HW.clip(0) * (255 / white) + 0.5).astype(np.uint8))
