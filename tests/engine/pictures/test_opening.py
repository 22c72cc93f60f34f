"""Every kind of picture file comes out upright, in RGB and its own colours; every bad one with its reason."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from corners import BLUE, GREEN, RED, YELLOW, draw_quarters, make_orientation_exif, read_quarter_colours
from PIL import Image

from engine.errors import PhotoError
from engine.pictures.opening import is_curable_reason, open_picture
from indexer.decode import Decoded, DecodeJob, decode, decode_jobs


def test_the_name_says_nothing_about_the_format(tmp_path: Path) -> None:
    draw_quarters().save(tmp_path / "a.jpg", format="PNG")
    assert read_quarter_colours(open_picture(tmp_path / "a.jpg")) == [RED, GREEN, BLUE, YELLOW]


def png_header(width: int, height: int) -> bytes:
    """Return the bytes of a PNG file that says its size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(20_000, 10_000), (20_001, 10_000), (60_000, 60_000)])
def test_a_picture_of_200_megapixels_is_refused_from_its_header(
    tmp_path: Path, width: int, height: int
) -> None:
    (tmp_path / "a.png").write_bytes(png_header(width, height))
    with pytest.raises(
        PhotoError, match=f"{width} x {height} pixels are .* from 200 megapixels on are refused"
    ):
        decode(tmp_path / "a.png", 32)


def test_the_cap_lies_above_pillows_and_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(19_000, 10_000))  # Pillow alone would call 190 a bomb
    with pytest.raises(PhotoError, match="cut off"):
        decode(tmp_path / "a.png", 32)
    draw_quarters().save(tmp_path / "b.png")
    with pytest.raises(PhotoError, match="megapixels"):
        open_picture(tmp_path / "b.png", max_pixels=96 * 64)
    assert open_picture(tmp_path / "b.png", max_pixels=96 * 64 + 1).size == (96, 64)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif"])
def test_truncated_at_any_place_is_a_failure(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    whole = stream.getvalue()
    for length in (1, 10, 30, len(whole) // 4, len(whole) // 2, len(whole) * 9 // 10):
        (tmp_path / f"a.{suffix}").write_bytes(whole[:length])
        with pytest.raises(PhotoError):
            decode(tmp_path / f"a.{suffix}", 32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"Dear diary,\ntoday I took a photo.\n", "it is a text file"),
        (b"\0" * 5000, "nothing but zero bytes"),
        (bytes(range(256)) * 20, "no known picture format"),
        (png_header(0, 5), "says 0 pixels"),
        (png_header(10, 0), "says 0 pixels"),
        (
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 0, 0, 1, 24, 0, 0, 0, 0, 0, 0),
            "says 0 pixels",
        ),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a text file"),
    ],
    ids=["empty", "text", "zeros", "noise", "zero-wide", "zero-high", "zero-bmp", "postscript"],
)
def test_what_is_no_picture_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(PhotoError, match=reason):
        decode(tmp_path / "a.jpg", 32)


def test_corrupt_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    outcomes = []
    for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif", "avif"):
        path = tmp_path / f"a.{suffix}"
        draw_quarters().save(path, exif=make_orientation_exif(6)) if suffix in (
            "jpg",
            "png",
        ) else draw_quarters().save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[generator.integers(0, len(whole), 8)] = generator.integers(0, 256, 8)
            path.write_bytes(damaged.tobytes())
            outcomes += decode_jobs([DecodeJob(path)], 16)
    assert {type(outcome) for outcome in outcomes} == {Decoded, PhotoError}
    assert all(str(outcome) for outcome in outcomes)


def test_gone_a_folder_and_a_device_say_so(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="no longer there"):
        decode(tmp_path / "a.jpg", 32)
    with pytest.raises(PhotoError, match="it cannot be read: Is a directory"):
        decode(tmp_path, 32)


def test_a_file_too_large_to_read_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "a.tif", "wb") as file:
        file.truncate(5_000_000_000)  # sparse: it takes no room
    with pytest.raises(PhotoError, match=r"it is 5\.0 GB large"):
        decode(tmp_path / "a.tif", 32)


def test_no_permission_is_curable_and_corruption_is_not() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "a.jpg"
        draw_quarters().save(path)
        path.chmod(0)
        uid = os.geteuid()
        if uid == 0:
            os.seteuid(65534)  # root may read everything
        try:
            (outcome,) = decode_jobs([DecodeJob(path)], 16)
        finally:
            os.seteuid(uid)
    assert isinstance(outcome, PhotoError)
    assert str(outcome) == "not permitted to read it: check its permissions"
    assert is_curable_reason(str(outcome))
    assert not is_curable_reason("the file is empty (0 bytes)")
