"""Captioned pictures from shards and JSON: what is read, and what is refused in which words."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import DataError
from training.data import CaptionedPicture, find_shards, load_pictures, read_annotations, read_shards


def picture(colour: str, size: tuple[int, int] = (20, 10)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_shards(tmp_path: Path) -> None:
    captions = json.dumps({"captions": ["a red tile", "", "red"]}).encode()
    shard = write_shard(
        tmp_path / "s-000.tar", {"a.png": picture("red"), "a.json": captions, "b.png": picture("blue")}
    )
    first, second = read_shards([shard])
    assert (first.key, first.captions) == ("a", ("a red tile", "red"))
    assert second.captions == ()
    pixels, kept, failures = load_pictures([first, second], 8)
    assert pixels.shape == (2, 8, 8, 3) and kept == [first, second] and not failures
    assert (pixels[0] == [255, 0, 0]).all() and (pixels[1] == [0, 0, 255]).all()


def test_find_shards_in_order_and_by_name(tmp_path: Path) -> None:
    for name in ("s-001.tar", "s-000.tar", "t-000.tar"):
        (tmp_path / name).touch()
    assert [p.name for p in find_shards(["s-*.tar"], tmp_path)] == ["s-000.tar", "s-001.tar"]
    with pytest.raises(DataError, match=r"No shard x-\*\.tar in"):
        find_shards(["x-*.tar"], tmp_path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.txt": b"no picture"}, "has no picture"),
        ({"a.png": picture("red"), "a.json": b"{"}, "is not a readable shard"),
        ({"a.png": picture("red"), "a.json": b'{"captions": 3}'}, "captions should be a text or a list"),
    ],
)
def test_broken_samples_are_named(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(read_shards([write_shard(tmp_path / "s.tar", members)]))


def test_a_file_that_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(DataError, match=r"s\.tar"):
        list(read_shards([tmp_path / "s.tar"]))


def test_annotations_join_rows_of_one_image(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(picture("red"))
    rows = [{"image": "x.png", "caption": "one"}, {"image": "x.png", "caption": ["two", "three"]}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (sample,) = read_annotations(tmp_path / "a.json", tmp_path)
    assert sample.captions == ("one", "two", "three")
    assert load_pictures([sample], 4)[0].shape == (1, 4, 4, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not readable JSON"),
        ('{"images": []}', "should be a list of objects"),
        ('[{"image": "x.png"}]', "should be a list of objects"),
        ('[{"image": "gone.png", "caption": "a"}]', r"1 of 1 pictures are not below .*first: gone\.png"),
    ],
)
def test_other_annotations_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_annotations(tmp_path / "a.json", tmp_path)


def test_unreadable_pictures_are_listed(tmp_path: Path) -> None:
    good, bad = CaptionedPicture("good", picture("red"), ("a",)), CaptionedPicture("bad", b"no", ("b",))
    pixels, kept, failures = load_pictures([bad, good], 4)
    assert len(pixels) == 1 and kept == [good] and [f.path.name for f in failures] == ["bad"]
    assert np.array_equal(pixels[0, 0, 0], [255, 0, 0])
    with pytest.raises(DataError, match="None of the 1 pictures"):
        load_pictures([bad], 4)
