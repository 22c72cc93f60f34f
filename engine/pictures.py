"""The bytes of a file become an upright RGB picture, or a reason why not.

Indexing workers import this module: it must stay free of torch and lancedb.
"""

import errno
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine.blip2.preprocess import squash
from engine.errors import PhotoError
from engine.types import Failure

RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"})
MAX_PIXELS = 200_000_000
MAX_BYTES = 2**31  # read into memory at once; a picture below the pixel cap does not come near
# Pillow's own limit warns from 89 megapixels and refuses from 179: `_check_size` stands in for it.
Image.MAX_IMAGE_PIXELS = None

Image.init()  # Image.open(formats=...) knows only loaded plugins; MPO comes through JPEG
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIC_MISSING = "HEIC pictures need an extra: pip install 'qseek[heic]'"
RAW_MISSING = "RAW pictures need an extra: pip install 'qseek[raw]'"
NOT_PERMITTED = "not permitted to read it: check its permissions"
VANISHED = "it is no longer there"

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
RAW_FLIP_TO_ORIENTATION = {3: 3, 5: 8, 6: 6}  # LibRaw's libraw_image_sizes_t.flip
LEAST_PREVIEW_SIDE = 480  # pixels; smaller previews of RAW files are thumbnails for the camera's screen


def open_picture(
    source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS, least_side: int | None = None
) -> Image.Image:
    """Open a photo as an upright RGB picture, transparency laid over white, the first frame of several.

    source: a path, or the bytes of a file (RAW files are known by their suffix and need a path).
    least_side: a JPEG may come scaled down by 2, 4 or 8, with no side shorter than this many pixels.
    Raises PhotoError with the reason alone.
    """
    if isinstance(source, bytes):
        return open_bytes(source, "", max_pixels, least_side)[0]
    return open_bytes(read_bytes(Path(source)), Path(source).suffix.lower(), max_pixels, least_side)[0]


def read_square(paths: Sequence[Path], size: int) -> np.ndarray | Failure:
    """The first of a photo's files that can be read, squashed -> uint8 (size, size, 3); else why the last cannot, at
    the first one's path. There is at least one."""
    for path in paths:
        try:
            return squash(open_picture(path, least_side=2 * size), size)
        except PhotoError as error:
            problem = str(error)
    return Failure(paths[0], problem)


def is_curable(reason: str) -> bool:
    """True for a failure that may go away while the file stays as it is: a missing extra, a permission."""
    return reason in (HEIC_MISSING, RAW_MISSING, NOT_PERMITTED)


def read_bytes(path: Path) -> bytes:
    """The whole file. Raises PhotoError: gone, not permitted, empty, over 2 GiB."""
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
    """A file's bytes -> the upright RGB picture, perhaps scaled down, and its full width and height.

    suffix: of the file's name, lower case; RAW files are known by it. The rest: see `open_picture`.
    """
    try:
        if suffix in RAW_SUFFIXES:
            return _open_raw(data, max_pixels, least_side)
        return _open_with_pillow(data, max_pixels, least_side)
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError(_why_unidentified(data)) from None
    except MemoryError:
        raise PhotoError("there is not enough memory to decode it") from None
    except Exception as error:  # decoders meet hostile bytes with every kind of exception
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


def _open_with_pillow(data: bytes, max_pixels: int, least_side: int | None) -> tuple[Image.Image, int, int]:
    formats = list(FORMATS)
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS and b"avif" not in data[8:64]:
        _register_heic()
        formats.append("HEIF")
    with Image.open(io.BytesIO(data), formats=formats) as picture:
        width, height = picture.size
        _check_size(width, height, max_pixels)
        if least_side is not None:
            picture.draft(None, (least_side, least_side))
        picture.load()
        orientation = _orientation(picture)  # after load: PNG may carry it behind the pixels, TIFF has turned
        upright = _turn(_to_rgb(picture), orientation)
    return (upright, height, width) if orientation >= 5 else (upright, width, height)


def _register_heic() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise PhotoError(HEIC_MISSING) from None
    register_heif_opener()


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height >= max_pixels:
        raise PhotoError(
            f"{width} x {height} pixels are {width * height / 1e6:.0f} megapixels: pictures from "
            f"{max_pixels / 1e6:.0f} megapixels on are refused, save a smaller copy"
        )


def _orientation(picture: Image.Image) -> int:
    """-> 1 to 8; 1 when the tag is missing or damaged, for the picture is whole all the same."""
    try:
        value = picture.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # EXIF blocks are damaged in many ways
        return 1
    return value if value in TO_UPRIGHT else 1


def _turn(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(TO_UPRIGHT[orientation]) if orientation in TO_UPRIGHT else picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _to_8_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A"))
        return white
    return picture.convert("RGB")  # a copy even of RGB: the file behind `picture` is about to close


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or float in [0, 1] -> mode L; larger values make their maximum white."""
    grey_HW = np.nan_to_num(np.asarray(picture).astype(np.float32), posinf=0, neginf=0)
    white = max(1.0 if picture.mode == "F" else 65535.0, float(grey_HW.max()))
    return Image.fromarray((grey_HW.clip(0) * (255 / white) + 0.5).astype(np.uint8))


def _open_raw(data: bytes, max_pixels: int, least_side: int | None) -> tuple[Image.Image, int, int]:
    """The camera's own preview where it is large enough, else the developed picture at half size."""
    try:
        import rawpy
    except ImportError:
        raise PhotoError(RAW_MISSING) from None
    with rawpy.imread(io.BytesIO(data)) as raw:
        width, height = raw.sizes.width, raw.sizes.height
        _check_size(width, height, max_pixels)
        orientation = RAW_FLIP_TO_ORIENTATION.get(raw.sizes.flip, 1)
        picture = _raw_preview(raw, orientation, max_pixels, least_side)
        if picture is None or min(picture.size) < min(LEAST_PREVIEW_SIDE, width, height):
            picture = Image.fromarray(raw.postprocess(half_size=True, use_camera_wb=True))  # upright
    return (picture, height, width) if orientation >= 5 else (picture, width, height)


def _raw_preview(raw: Any, orientation: int, max_pixels: int, least_side: int | None) -> Image.Image | None:
    """The picture that the camera put into the RAW file, upright; None when there is none."""
    import rawpy

    try:
        preview = raw.extract_thumb()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        return None
    if preview.format != rawpy.ThumbFormat.JPEG:
        return _turn(Image.fromarray(preview.data), orientation)
    # Some cameras write the orientation into the preview as well, others into the RAW file alone.
    with Image.open(io.BytesIO(preview.data), formats=FORMATS) as stored:
        is_turned_by_exif = ORIENTATION_TAG in stored.getexif()
    picture = _open_with_pillow(preview.data, max_pixels, least_side)[0]
    return picture if is_turned_by_exif else _turn(picture, orientation)
