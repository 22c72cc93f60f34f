"""Every kind of picture file comes out upright, in RGB and its own colours; every bad one with its reason."""

import hashlib
import io
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import PhotoError
from engine.pictures.opening import is_curable, open_picture
from indexer import decode as module
from indexer.decode import Decoded, Known, Task, attempt, decode

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def quarters(width: int = 96, height: int = 64) -> Image.Image:
    """Red and green above, blue and yellow below: every turn and mirror image differs."""
    picture = Image.new("RGB", (width, height))
    for number, colour in enumerate((RED, GREEN, BLUE, YELLOW)):
        box = (number % 2 * width // 2, number // 2 * height // 2)
        picture.paste(colour, (*box, box[0] + width // 2, box[1] + height // 2))
    return picture


def corners(picture: Image.Image | np.ndarray) -> list[tuple[int, ...]]:
    """The middle of each quarter, row by row."""
    pixels_HWC = np.asarray(picture)
    height, width, _ = pixels_HWC.shape
    at = [(y * height // 4, x * width // 4) for y in (1, 3) for x in (1, 3)]
    return [tuple(int(value) for value in pixels_HWC[y, x]) for y, x in at]


def assert_near(
    colours: list[tuple[int, ...]], expected: Sequence[tuple[int, ...]], tolerance: int = 6
) -> None:
    assert np.abs(np.array(colours) - np.array(expected)).max() <= tolerance, (colours, expected)


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# How a camera that was held so stores the upright picture; EXIF 2.32, Orientation.
STORED_AS = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_all_orientations_come_out_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](np.asarray(quarters()))))
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=with_orientation(orientation))
    picture = open_picture(path)
    assert picture.size == (96, 64)
    assert_near(corners(picture), [RED, GREEN, BLUE, YELLOW], tolerance=12)
    decoded = decode(path, 16)
    assert (decoded.width, decoded.height) == (96, 64)
    assert_near(corners(decoded.pixels), [RED, GREEN, BLUE, YELLOW], tolerance=12)


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_an_orientation_out_of_range_is_upright(tmp_path: Path, orientation: int) -> None:
    quarters().save(tmp_path / "a.jpg", exif=with_orientation(orientation))
    assert_near(corners(open_picture(tmp_path / "a.jpg")), [RED, GREEN, BLUE, YELLOW])


def test_damaged_exif_does_not_cost_the_photo(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f rubbish")
    assert_near(corners(open_picture(tmp_path / "a.jpg")), [RED, GREEN, BLUE, YELLOW])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "avif"])
def test_the_formats_out_of_the_box(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    quarters().save(path)
    decoded = decode(path, 32)
    assert decoded.pixels.shape == (32, 32, 3)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.digest == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert_near(corners(decoded.pixels), [RED, GREEN, BLUE, YELLOW], tolerance=12)
    assert_near(corners(open_picture(path.read_bytes())), [RED, GREEN, BLUE, YELLOW], tolerance=12)


def test_the_name_says_nothing_about_the_format(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", format="PNG")
    assert corners(open_picture(tmp_path / "a.jpg")) == [RED, GREEN, BLUE, YELLOW]


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    others = [Image.new("RGB", (96, 64), "black")] * 2
    for name in ("a.gif", "b.webp", "c.png", "d.tif"):
        quarters().save(tmp_path / name, save_all=True, append_images=others)
        assert_near(corners(open_picture(tmp_path / name)), [RED, GREEN, BLUE, YELLOW], tolerance=12)


def test_a_picture_of_several_as_phones_write_it(tmp_path: Path) -> None:
    quarters(960, 640).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (96, 64))],
        exif=with_orientation(3),
    )  # fmt: skip
    decoded = decode(tmp_path / "a.jpg", 32)
    assert (decoded.width, decoded.height) == (960, 640)
    assert_near(corners(decoded.pixels), [YELLOW, BLUE, GREEN, RED])


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    rgba = quarters().convert("RGBA")
    alpha_HW = np.full((64, 96), 255, np.uint8)
    alpha_HW[:32, :48], alpha_HW[32:, 48:] = 0, 128
    rgba.putalpha(Image.fromarray(alpha_HW))
    for name in ("a.png", "b.webp", "c.tif"):
        rgba.save(tmp_path / name, lossless=True)
        expected = [(255, 255, 255), GREEN, BLUE, (255, 255, 127)]
        assert_near(corners(open_picture(tmp_path / name)), expected, tolerance=2)
    grey = Image.new("LA", (96, 64), (100, 0))
    grey.paste((100, 255), (48, 0, 96, 64))
    grey.save(tmp_path / "d.png")
    assert corners(open_picture(tmp_path / "d.png")) == [(255,) * 3, (100,) * 3] * 2


def test_palettes_with_and_without_a_transparent_colour(tmp_path: Path) -> None:
    palette = quarters().quantize(4)
    palette.save(tmp_path / "a.png")
    palette.save(tmp_path / "b.gif")
    for name in ("a.png", "b.gif"):
        assert_near(corners(open_picture(tmp_path / name)), [RED, GREEN, BLUE, YELLOW], tolerance=2)
    palette.save(tmp_path / "c.png", transparency=palette.getpixel((5, 5)))
    palette.save(tmp_path / "d.gif", transparency=palette.getpixel((5, 5)))
    for name in ("c.png", "d.gif"):
        assert_near(corners(open_picture(tmp_path / name)), [(255,) * 3, GREEN, BLUE, YELLOW], tolerance=2)
    quarters().save(tmp_path / "e.png", transparency=RED)
    assert corners(open_picture(tmp_path / "e.png")) == [(255,) * 3, GREEN, BLUE, YELLOW]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path, suffix: str) -> None:
    shades = np.array([[0, 257 * 50], [257 * 128, 65535]], np.uint16).repeat(32, 0).repeat(48, 1)
    Image.fromarray(shades).save(tmp_path / f"a.{suffix}")
    assert corners(open_picture(tmp_path / f"a.{suffix}")) == [(0,) * 3, (50,) * 3, (128,) * 3, (255,) * 3]


def test_wider_greys_black_and_white_and_float(tmp_path: Path) -> None:
    quarter_HW = np.array([[0, 0.25], [0.75, 1.0]], np.float32).repeat(32, 0).repeat(48, 1)
    Image.fromarray(quarter_HW).save(tmp_path / "a.tif")
    Image.fromarray((quarter_HW * 2_000_000).astype(np.int32)).save(tmp_path / "b.tif")
    for name in ("a.tif", "b.tif"):
        assert corners(open_picture(tmp_path / name)) == [(0,) * 3, (64,) * 3, (191,) * 3, (255,) * 3]
    Image.fromarray(quarter_HW > 0.5).save(tmp_path / "c.png")
    assert corners(open_picture(tmp_path / "c.png")) == [(0,) * 3, (0,) * 3, (255,) * 3, (255,) * 3]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    quarters().convert("CMYK").save(tmp_path / f"a.{suffix}", quality=95)
    assert_near(corners(open_picture(tmp_path / f"a.{suffix}")), [RED, GREEN, BLUE, YELLOW], tolerance=12)


def test_a_large_jpeg_comes_scaled_down_and_turned_with_its_true_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    quarters(1600, 1200).save(path, exif=with_orientation(6))
    assert open_picture(path).size == (1200, 1600)
    assert open_picture(path, least_side=100).size == (150, 200)  # by 8, the most that JPEG can
    assert open_picture(path, least_side=200).size == (300, 400)
    decoded = decode(path, 64)
    assert (decoded.width, decoded.height) == (1200, 1600)
    assert_near(corners(decoded.pixels), [BLUE, RED, YELLOW, GREEN])


def test_scaling_in_the_jpeg_decoder_hardly_shows(tmp_path: Path) -> None:
    y, x = np.mgrid[0:1200, 0:1600].astype(np.float32)
    waves = [
        127 + 100 * np.sin(x / (10 + 15 * channel)) * np.cos(y / (17 - 4 * channel)) for channel in range(3)
    ]
    Image.fromarray(np.stack(waves, axis=2).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    whole = open_picture(tmp_path / "a.jpg").resize((128, 128), Image.Resampling.BICUBIC)
    difference = np.abs(decode(tmp_path / "a.jpg", 128).pixels.astype(int) - np.asarray(whole).astype(int))
    assert difference.mean() < 0.5  # 0.3 with twice the size kept, 1.1 with once


def png_header(width: int, height: int) -> bytes:
    """A PNG that says its size and holds no pixels."""

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
    quarters().save(tmp_path / "b.png")
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
        quarters().save(path, exif=with_orientation(6)) if suffix in ("jpg", "png") else quarters().save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[generator.integers(0, len(whole), 8)] = generator.integers(0, 256, 8)
            path.write_bytes(damaged.tobytes())
            outcomes += attempt([Task(path)], 16)
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
        quarters().save(path)
        path.chmod(0)
        uid = os.geteuid()
        if uid == 0:
            os.seteuid(65534)  # root may read everything
        try:
            (outcome,) = attempt([Task(path)], 16)
        finally:
            os.seteuid(uid)
    assert isinstance(outcome, PhotoError)
    assert str(outcome) == "not permitted to read it: check its permissions"
    assert is_curable(str(outcome))
    assert not is_curable("the file is empty (0 bytes)")


@pytest.mark.parametrize("name", ["a.heic", "called.jpg"])
def test_heic_without_its_extra_names_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    (outcome,) = attempt([Task(tmp_path / name)], 16)
    assert str(outcome) == "HEIC pictures need an extra: pip install 'qseek[heic]'"
    assert is_curable(str(outcome))


def test_raw_without_its_extra_names_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    (tmp_path / "a.NEF").write_bytes(b"II*\0" + bytes(200))
    (outcome,) = attempt([Task(tmp_path / "a.NEF")], 16)
    assert str(outcome) == "RAW pictures need an extra: pip install 'qseek[raw]'"
    assert is_curable(str(outcome))


def test_heic_of_two_orientations(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    for orientation in (1, 6):
        stored = Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](np.asarray(quarters()))))
        stored.info["exif"] = with_orientation(
            orientation
        ).tobytes()  # pillow-heif writes the irot box from it
        stored.save(tmp_path / "a.heic", quality=95)
        decoded = decode(tmp_path / "a.heic", 32)
        assert (decoded.width, decoded.height) == (96, 64)
        assert_near(corners(decoded.pixels), [RED, GREEN, BLUE, YELLOW], tolerance=12)


def ifd(entries: dict[int, tuple[str, list[int]]], at: int) -> bytes:
    """A TIFF directory for this offset, followed by the values that do not fit into it."""
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
    """A RAW file as Adobe's DNG 1.4 specification has it: one Bayer pattern, perhaps a JPEG preview."""
    stored_HWC = np.ascontiguousarray(STORED_AS[orientation](np.asarray(upright)))
    height, width, _ = stored_HWC.shape
    bayer_HW = stored_HWC[..., 1].astype(np.uint16) * 257  # RGGB
    bayer_HW[::2, ::2] = stored_HWC[::2, ::2, 0].astype(np.uint16) * 257
    bayer_HW[1::2, 1::2] = stored_HWC[1::2, 1::2, 2].astype(np.uint16) * 257
    jpeg = io.BytesIO()
    if preview_size:
        Image.fromarray(stored_HWC).resize(preview_size).save(jpeg, "JPEG", quality=95)
    raw_at, preview_at, main_at = 8, 8 + bayer_HW.nbytes, 8 + bayer_HW.nbytes + len(jpeg.getvalue())
    matrix = [value for one in (1, 0, 0, 0, 1, 0, 0, 0, 1) for value in (one, 1)]
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
    write_dng(tmp_path / "a.DNG", quarters(1200, 800), orientation, size)
    picture = open_picture(tmp_path / "a.DNG")
    assert picture.size == ((960, 640) if preview == "large" else (600, 400))
    decoded = decode(tmp_path / "a.DNG", 32)
    assert (decoded.width, decoded.height) == (1200, 800)
    assert_near(
        corners(decoded.pixels), [RED, GREEN, BLUE, YELLOW], tolerance=60
    )  # a camera's own idea of red


def test_a_raw_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    (tmp_path / "a.nef").write_bytes(b"II*\0" + bytes(range(256)) * 9)
    with pytest.raises(PhotoError, match="it cannot be decoded"):
        decode(tmp_path / "a.nef", 32)


def test_a_known_photo_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quarters().save(tmp_path / "a.png")
    quarters().rotate(90).save(tmp_path / "b.png")
    digest = decode(tmp_path / "a.png", 16).digest
    monkeypatch.setattr(module, "squash", lambda picture, size: pytest.fail("decoded"))
    assert attempt([Task(tmp_path / "a.png", frozenset({digest, "another"}))], 16) == [Known(digest)]
    with pytest.raises(pytest.fail.Exception):
        attempt([Task(tmp_path / "b.png", frozenset({digest}))], 16)


def test_several_tasks_keep_their_order_and_their_failures(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    first, second, third = attempt([Task(tmp_path / name) for name in ("a.png", "b.png", "a.png")], 16)
    assert isinstance(first, Decoded)
    assert isinstance(second, PhotoError)
    assert isinstance(third, Decoded)
    assert first.digest == third.digest


def test_workers_import_neither_torch_nor_lancedb() -> None:
    code = (
        "import sys, indexer.decode_pool; print({'torch', 'lancedb', 'lance', 'pyarrow'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
