"""Files that Pillow opens come out as RGB of the right colours: formats, animations, transparency, greys, HEIC.

Pillow's own limit on pixels is lifted only while pictures are opened here, also from two threads.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import threading
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

from engine.errors import PhotoError
from engine.pictures import pillow_files
from engine.pictures.opening import is_curable_reason, open_picture
from indexer.decode import DecodeJob, decode, decode_jobs

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "avif"])
def test_the_formats_out_of_the_box(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    draw_quarters().save(path)
    decoded = decode(path, 32)
    assert decoded.pixels.shape == (32, 32, 3)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.digest == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert_near(read_quarter_colours(decoded.pixels), [RED, GREEN, BLUE, YELLOW], tolerance=12)
    assert_near(
        read_quarter_colours(open_picture(path.read_bytes())), [RED, GREEN, BLUE, YELLOW], tolerance=12
    )


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    others = [Image.new("RGB", (96, 64), "black")] * 2
    for name in ("a.gif", "b.webp", "c.png", "d.tif"):
        draw_quarters().save(tmp_path / name, save_all=True, append_images=others)
        assert_near(
            read_quarter_colours(open_picture(tmp_path / name)), [RED, GREEN, BLUE, YELLOW], tolerance=12
        )


def test_a_picture_of_several_as_phones_write_it(tmp_path: Path) -> None:
    draw_quarters(960, 640).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (96, 64))],
        exif=make_orientation_exif(3),
    )  # fmt: skip
    decoded = decode(tmp_path / "a.jpg", 32)
    assert (decoded.width, decoded.height) == (960, 640)
    assert_near(read_quarter_colours(decoded.pixels), [YELLOW, BLUE, GREEN, RED])


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    rgba = draw_quarters().convert("RGBA")
    alpha_HW = np.full((64, 96), 255, np.uint8)
    alpha_HW[:32, :48], alpha_HW[32:, 48:] = 0, 128
    rgba.putalpha(Image.fromarray(alpha_HW))
    for name in ("a.png", "b.webp", "c.tif"):
        rgba.save(tmp_path / name, lossless=True)
        expected = [(255, 255, 255), GREEN, BLUE, (255, 255, 127)]
        assert_near(read_quarter_colours(open_picture(tmp_path / name)), expected, tolerance=2)
    grey = Image.new("LA", (96, 64), (100, 0))
    grey.paste((100, 255), (48, 0, 96, 64))
    grey.save(tmp_path / "d.png")
    assert read_quarter_colours(open_picture(tmp_path / "d.png")) == [(255,) * 3, (100,) * 3] * 2


def test_palettes_with_and_without_a_transparent_colour(tmp_path: Path) -> None:
    palette = draw_quarters().quantize(4)
    palette.save(tmp_path / "a.png")
    palette.save(tmp_path / "b.gif")
    for name in ("a.png", "b.gif"):
        assert_near(
            read_quarter_colours(open_picture(tmp_path / name)), [RED, GREEN, BLUE, YELLOW], tolerance=2
        )
    palette.save(tmp_path / "c.png", transparency=palette.getpixel((5, 5)))
    palette.save(tmp_path / "d.gif", transparency=palette.getpixel((5, 5)))
    for name in ("c.png", "d.gif"):
        assert_near(
            read_quarter_colours(open_picture(tmp_path / name)),
            [(255,) * 3, GREEN, BLUE, YELLOW],
            tolerance=2,
        )
    draw_quarters().save(tmp_path / "e.png", transparency=RED)
    assert read_quarter_colours(open_picture(tmp_path / "e.png")) == [(255,) * 3, GREEN, BLUE, YELLOW]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path, suffix: str) -> None:
    shades = np.array([[0, 257 * 50], [257 * 128, 65535]], np.uint16).repeat(32, 0).repeat(48, 1)
    Image.fromarray(shades).save(tmp_path / f"a.{suffix}")
    assert read_quarter_colours(open_picture(tmp_path / f"a.{suffix}")) == [
        (0,) * 3,
        (50,) * 3,
        (128,) * 3,
        (255,) * 3,
    ]


def test_wider_greys_black_and_white_and_float(tmp_path: Path) -> None:
    quarter_HW = np.array([[0, 0.25], [0.75, 1.0]], np.float32).repeat(32, 0).repeat(48, 1)
    Image.fromarray(quarter_HW).save(tmp_path / "a.tif")
    Image.fromarray((quarter_HW * 2_000_000).astype(np.int32)).save(tmp_path / "b.tif")
    for name in ("a.tif", "b.tif"):
        assert read_quarter_colours(open_picture(tmp_path / name)) == [
            (0,) * 3,
            (64,) * 3,
            (191,) * 3,
            (255,) * 3,
        ]
    Image.fromarray(quarter_HW > 0.5).save(tmp_path / "c.png")
    assert read_quarter_colours(open_picture(tmp_path / "c.png")) == [
        (0,) * 3,
        (0,) * 3,
        (255,) * 3,
        (255,) * 3,
    ]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    draw_quarters().convert("CMYK").save(tmp_path / f"a.{suffix}", quality=95)
    assert_near(
        read_quarter_colours(open_picture(tmp_path / f"a.{suffix}")), [RED, GREEN, BLUE, YELLOW], tolerance=12
    )


def test_a_large_jpeg_comes_scaled_down_and_turned_with_its_true_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    draw_quarters(1600, 1200).save(path, exif=make_orientation_exif(6))
    assert open_picture(path).size == (1200, 1600)
    assert open_picture(path, least_side=100).size == (150, 200)  # by 8, the most that JPEG can
    assert open_picture(path, least_side=200).size == (300, 400)
    decoded = decode(path, 64)
    assert (decoded.width, decoded.height) == (1200, 1600)
    assert_near(read_quarter_colours(decoded.pixels), [BLUE, RED, YELLOW, GREEN])


def test_scaling_in_the_jpeg_decoder_hardly_shows(tmp_path: Path) -> None:
    y, x = np.mgrid[0:1200, 0:1600].astype(np.float32)
    waves = [
        127 + 100 * np.sin(x / (10 + 15 * channel)) * np.cos(y / (17 - 4 * channel)) for channel in range(3)
    ]
    Image.fromarray(np.stack(waves, axis=2).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    whole = open_picture(tmp_path / "a.jpg").resize((128, 128), Image.Resampling.BICUBIC)
    difference = np.abs(decode(tmp_path / "a.jpg", 128).pixels.astype(int) - np.asarray(whole).astype(int))
    assert difference.mean() < 0.5  # 0.3 with twice the size kept, 1.1 with once


@pytest.mark.parametrize("name", ["a.heic", "called.jpg"])
def test_heic_without_its_extra_names_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    (outcome,) = decode_jobs([DecodeJob(tmp_path / name)], 16)
    assert str(outcome) == "HEIC pictures need an extra: pip install 'qseek[heic]'"
    assert is_curable_reason(str(outcome))


def test_heic_of_two_orientations(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    for orientation in (1, 6):
        stored = Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](np.asarray(draw_quarters()))))
        stored.info["exif"] = make_orientation_exif(
            orientation
        ).tobytes()  # pillow-heif writes the irot box from it
        stored.save(tmp_path / "a.heic", quality=95)
        decoded = decode(tmp_path / "a.heic", 32)
        assert (decoded.width, decoded.height) == (96, 64)
        assert_near(read_quarter_colours(decoded.pixels), [RED, GREEN, BLUE, YELLOW], tolerance=12)


def png(side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def test_importing_leaves_pillow_alone() -> None:
    code = (
        "from PIL import Image; limit = Image.MAX_IMAGE_PIXELS\n"
        "import engine.pictures.opening, engine.pictures.raw_files, engine.datasets.picture_reading\n"
        "print(Image.MAX_IMAGE_PIXELS == limit, limit is None, Image._initialized)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "False", "0"]


@pytest.mark.parametrize("content", [png(), b"no picture"])
def test_the_limit_comes_back(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow alone would refuse 64 pixels
    if content == png():
        assert open_picture(content).size == (8, 8)
    else:
        with pytest.raises(PhotoError):
            open_picture(content)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(png()))


def test_the_limit_comes_back_when_the_last_of_two_threads_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    is_open, may_go_on = threading.Event(), threading.Event()
    limits: list[int | None] = []

    def wait_inside(width: int, height: int, max_pixels: int) -> None:
        if width == 16:
            is_open.set()
            assert may_go_on.wait(30)
            limits.append(Image.MAX_IMAGE_PIXELS)

    monkeypatch.setattr(pillow_files, "check_size", wait_inside)
    slow = threading.Thread(target=open_picture, args=(png(16),))
    slow.start()
    assert is_open.wait(30)
    assert open_picture(png()).size == (8, 8)  # comes after the slow one and is done before it
    limits.append(Image.MAX_IMAGE_PIXELS)
    may_go_on.set()
    slow.join(30)
    assert limits == [None, None] and Image.MAX_IMAGE_PIXELS == 10
