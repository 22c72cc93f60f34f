"""RAW photos come out upright, from their preview or developed."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from corners import BLUE, GREEN, RED, STORED_AS, YELLOW, assert_near, draw_quarters, read_quarter_colours
from PIL import Image

from engine.errors import PhotoError
from engine.pictures.opening import is_curable_reason, open_picture
from indexer.decode import DecodeJob, decode, decode_jobs


def test_raw_without_its_extra_names_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    (tmp_path / "a.NEF").write_bytes(b"II*\0" + bytes(200))
    (outcome,) = decode_jobs([DecodeJob(tmp_path / "a.NEF")], 16)
    assert str(outcome) == "RAW pictures need an extra: pip install 'qseek[raw]'"
    assert is_curable_reason(str(outcome))


def ifd(entries: dict[int, tuple[str, list[int]]], at: int) -> bytes:
    """Return a TIFF directory for this offset, followed by the values that do not fit into it."""
    table, beyond = struct.pack("<H", len(entries)), b""
    start = at + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        number = {"B": 1, "H": 3, "I": 4, "RATIONAL": 5, "SRATIONAL": 10}[kind]
        count = len(values) // 2 if "RATIONAL" in kind else len(values)
        data = struct.pack(f"<{len(values)}{kind if len(kind) == 1 else 'i'}", *values)
        if len(data) > 4:
            beyond, data = beyond + data, struct.pack("<I", start + len(beyond))
        table += struct.pack("<HHI4s", tag, number, count, data)
    return table + struct.pack("<I", 0) + beyond


def write_dng(
    path: Path, upright: Image.Image, orientation: int, preview_size: tuple[int, int] | None
) -> None:
    """Return a RAW file by Adobe's DNG 1.4 specification, with one Bayer pattern and, if asked for, a JPEG preview."""
    stored_HWC = np.ascontiguousarray(STORED_AS[orientation](np.asarray(upright)))
    height, width, _ = stored_HWC.shape
    bayer_HW = stored_HWC[..., 1].astype(np.uint16) * 257  # RGGB
    bayer_HW[::2, ::2] = stored_HWC[::2, ::2, 0].astype(np.uint16) * 257
    bayer_HW[1::2, 1::2] = stored_HWC[1::2, 1::2, 2].astype(np.uint16) * 257
    jpeg = io.BytesIO()
    if preview_size:
        Image.fromarray(stored_HWC).resize(preview_size).save(jpeg, "JPEG", quality=95)
    raw_at, preview_at, main_at = 8, 8 + bayer_HW.nbytes, 8 + bayer_HW.nbytes + len(jpeg.getvalue())
    matrix = [number for numerator in (1, 0, 0, 0, 1, 0, 0, 0, 1) for number in (numerator, 1)]
    sensor: dict[int, tuple[str, list[int]]] = {
        254: ("I", [0]), 256: ("I", [width]), 257: ("I", [height]), 258: ("H", [16]), 259: ("H", [1]),
        262: ("H", [32803]), 273: ("I", [raw_at]), 277: ("H", [1]), 278: ("I", [height]),
        279: ("I", [bayer_HW.nbytes]), 33421: ("H", [2, 2]), 33422: ("B", [0, 1, 1, 2]),
    }  # fmt: skip
    colours: dict[int, tuple[str, list[int]]] = {
        271: ("B", [*b"Test\0"]), 272: ("B", [*b"Test camera\0"]), 274: ("H", [orientation]),
        50706: ("B", [1, 4, 0, 0]), 50708: ("B", [*b"Test camera\0"]), 50721: ("SRATIONAL", matrix),
        50728: ("RATIONAL", [1, 1] * 3), 50778: ("H", [21]),
    }  # fmt: skip
    if preview_size:
        preview: dict[int, tuple[str, list[int]]] = {
            254: ("I", [1]), 256: ("I", [preview_size[0]]), 257: ("I", [preview_size[1]]),
            258: ("H", [8, 8, 8]), 259: ("H", [7]), 262: ("H", [6]), 273: ("I", [preview_at]),
            277: ("H", [3]), 278: ("I", [preview_size[1]]), 279: ("I", [len(jpeg.getvalue())]),
        }  # fmt: skip
        sub_at = main_at + len(ifd({**preview, **colours, 330: ("I", [0])}, main_at))
        directories = ifd({**preview, **colours, 330: ("I", [sub_at])}, main_at) + ifd(sensor, sub_at)
    else:
        directories = ifd({**sensor, **colours}, main_at)
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, main_at) + bayer_HW.tobytes() + jpeg.getvalue() + directories
    )


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("preview", ["large", "small", "none"])
def test_raw_comes_upright_from_its_preview_or_developed(
    tmp_path: Path, preview: str, orientation: int
) -> None:
    pytest.importorskip("rawpy")
    size = {"large": (960, 640), "small": (160, 120), "none": None}[preview]
    if size and orientation >= 5:
        size = (size[1], size[0])
    write_dng(tmp_path / "a.DNG", draw_quarters(1200, 800), orientation, size)
    picture = open_picture(tmp_path / "a.DNG")
    assert picture.size == ((960, 640) if preview == "large" else (600, 400))
    decoded = decode(tmp_path / "a.DNG", 32)
    assert (decoded.width, decoded.height) == (1200, 800)
    assert_near(
        read_quarter_colours(decoded.pixels), [RED, GREEN, BLUE, YELLOW], tolerance=60
    )  # a camera's own idea of red


def test_a_raw_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    (tmp_path / "a.nef").write_bytes(b"II*\0" + bytes(range(256)) * 9)
    with pytest.raises(PhotoError, match="it cannot be decoded"):
        decode(tmp_path / "a.nef", 32)
