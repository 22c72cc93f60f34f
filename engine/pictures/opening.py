"""Open a photo from a path or from bytes as an upright RGB picture, or raise PhotoError with the reason.

The worker processes of indexing import this module, so it must not import torch or lancedb.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine.errors import PhotoError
from engine.pictures.formats import RAW_SUFFIXES
from engine.pictures.pillow_files import HEIC_MISSING, open_with_pillow
from engine.pictures.raw_files import RAW_MISSING, open_raw
from engine.pictures.squares import squash
from engine.types import Failure

MAX_PIXELS = 200_000_000
# A file is read into memory as a whole. A picture with fewer than MAX_PIXELS pixels never comes near this size.
MAX_BYTES = 2**31
NOT_PERMITTED = "not permitted to read it: check its permissions"
VANISHED = "it is no longer there"

T = TypeVar("T")


def open_picture(
    source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS, least_side: int | None = None
) -> Image.Image:
    """Open a photo as an upright RGB picture: transparency is laid over white, and the first of several frames is
    taken.

    source: a path, or the bytes of a file. RAW files are recognised by their suffix and need a path. max_pixels:
    pictures with this many pixels or more are refused. least_side: a JPEG may come scaled down by 2, 4 or 8, with no
    side shorter than this many pixels. Raises PhotoError; its message is the reason alone, without the path.
    """
    if isinstance(source, bytes):
        return open_bytes(source, "", max_pixels, least_side)[0]
    return open_bytes(read_bytes(Path(source)), Path(source).suffix.lower(), max_pixels, least_side)[0]


def read_first_readable(paths: Sequence[Path], read: Callable[[Path], T]) -> T | Failure:
    """Return `read(path)` of the first path that can be read, or a Failure with the reason for the first path.

    paths: the files of one photo, at least one, in the order in which they are tried. read: a function that raises
    PhotoError for a file that it cannot read.
    """
    reasons: list[str] = []
    for path in paths:
        try:
            return read(path)
        except PhotoError as error:
            reasons.append(str(error))
    return Failure(paths[0], reasons[0])


def read_square(paths: Sequence[Path], size: int) -> np.ndarray | Failure:
    """Return a photo squashed to uint8 (size, size, 3), from the first of its files that can be read, else a
    Failure.
    """
    return read_first_readable(paths, lambda path: squash(open_picture(path, least_side=2 * size), size))


def is_curable_reason(reason: str) -> bool:
    """Return whether a failure may go away although the file stays as it is: a missing package, or a permission."""
    return reason in (HEIC_MISSING, RAW_MISSING, NOT_PERMITTED)


def read_bytes(path: Path) -> bytes:
    """Read a whole file. Raises PhotoError when it is gone, empty, over 2 GiB, or may not be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise PhotoError(f"it is {size / 1e9:.1f} GB large: over {MAX_BYTES / 1e9:.1f} GB is refused")
            data = file.read()
    except FileNotFoundError:
        raise PhotoError(VANISHED) from None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PhotoError(NOT_PERMITTED) from None
        raise PhotoError(f"it cannot be read: {error.strerror}") from None
    if not data:
        raise PhotoError("the file is empty (0 bytes)")
    return data


def open_bytes(
    data: bytes, suffix: str, max_pixels: int, least_side: int | None
) -> tuple[Image.Image, int, int]:
    """Return the upright RGB picture in a file's bytes, perhaps scaled down, with its full width and height in pixels.

    suffix: the suffix of the file's name in lower case, by which RAW files are recognised. max_pixels, least_side and
    errors: see `open_picture`.
    """
    try:
        if suffix in RAW_SUFFIXES:
            return open_raw(data, max_pixels, least_side)
        return open_with_pillow(data, max_pixels, least_side)
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError(_why_unidentified(data)) from None
    except MemoryError:
        raise PhotoError("there is not enough memory to decode it") from None
    except Exception as error:  # Decoders raise every kind of exception on hostile bytes.
        if "truncated" in str(error) or isinstance(error, EOFError):
            raise PhotoError(f"the file is cut off ({error})") from None
        raise PhotoError(f"it cannot be decoded: {error or type(error).__name__}") from None


def _why_unidentified(data: bytes) -> str:
    if not data.strip(b"\0"):
        return "the file holds nothing but zero bytes"
    printable = sum(byte in b"\t\n\r" or 32 <= byte < 127 for byte in data[:512])
    if printable == len(data[:512]):
        return "it is a text file, not a picture"
    return "no known picture format, or its header is damaged or says 0 pixels"
