"""Tell the forms of captioned sets apart; every way to read a set gives the same pictures and captions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from shard_writing import make_png, write_shard

from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.captioned_sets import (
    SetKind,
    SourceConfig,
    detect_set_kind,
    find_set_folder,
    open_set,
    open_training_set,
    read_caption_items,
    read_small_sets,
)
from engine.datasets.photo_numbers import PhotoSets
from engine.errors import DataError

TEXTS = {
    "a.json": b'{"captions": ["one", "two"], "caption": "less", "label": "tile"}',
    "b.json": b'{"caption": "three"}',
    "c.json": b'{"text": ["four"], "captions": []}',
    "d.txt": b" five\n",
    "e.txt": b"left aside",
    "e.JSON": b'{"captions": ["six"]}',
    "f.txt": b"{seven}",
}
CAPTIONS = {
    "a": ("one", "two"), "b": ("three",), "c": ("four",), "d": ("five",), "e": ("six",), "f": ("{seven}",), "g": (),
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with s-0.tar, whose samples hold their captions in each of the known ways."""
    pictures = {f"{key}.png": make_png("red", (8 + number, 8)) for number, key in enumerate(CAPTIONS)}
    write_shard(tmp_path / "s-0.tar", dict(sorted((TEXTS | pictures).items())))
    return tmp_path


def test_a_tar_has_the_same_captions_in_every_way_of_reading(data: Path) -> None:
    """Compare a small set, a training stream, the photos that CapFilt numbers, and the items of an evaluation."""
    small_set = read_small_sets(["s-*.tar"], data)
    assert {captioned.key: captioned.captions for captioned in small_set} == CAPTIONS
    training_set = open_training_set(SourceConfig("s-*.tar"), data)
    (shard,) = training_set.shards
    assert [shard.read_sample(row).pair for row in range(training_set.count)] == small_set
    photos = PhotoSets(["s-*.tar"], data)
    assert [photos[number] for number in range(len(photos))] == small_set and small_set[0].label == "tile"
    items = read_caption_items(data / "s-0.tar")
    assert [(item.id, item.references, item.picture) for item in items] == [
        (captioned.key, captioned.captions, captioned.picture) for captioned in small_set
    ]


def test_a_name_stands_for_tars_a_json_file_or_a_folder(data: Path) -> None:
    (data / "folder.tar").mkdir()
    (data / "captions").write_text("[]")
    (data / "shard").write_bytes((data / "s-0.tar").read_bytes())
    kinds = {
        "s-0.tar": SetKind.TARS, "s-*.tar": SetKind.TARS, "s-{0..9}": SetKind.TARS, "shard": SetKind.TARS,
        "folder.tar": SetKind.FOLDER, ".": SetKind.FOLDER,
        "captions": SetKind.JSON, "not-there.json": SetKind.JSON,
    }  # fmt: skip
    assert {name: detect_set_kind(data / name) for name in kinds} == kinds
    assert open_set("shard", data).parts[0].count == len(CAPTIONS)


def test_a_set_is_opened_in_the_first_folder_that_holds_it(data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert find_set_folder("s-{0..3}.tar", [empty, data]) == (data, "s-{0..3}.tar")
    assert find_set_folder("t-*.tar", [empty, data]) == (empty, "t-*.tar")
    assert len(read_small_sets([str(data / "s-0.tar")], empty)) == len(CAPTIONS)


def test_a_stream_leaves_broken_shards_out_and_a_small_set_refuses_them(data: Path) -> None:
    (data / "s-1.tar").write_bytes(b"not a tar" * 200)
    training_set = open_training_set(SourceConfig("s-{0..2}.tar"), data)
    assert training_set.names == ["s-0.tar"]
    assert [failure.path.name for failure in training_set.broken] == ["s-1.tar", "s-2.tar"]
    assert training_set.broken[1].reason == f"No shard s-2.tar in {data}; check the folder and the name."
    with pytest.raises(DataError, match=r"s-1\.tar is not a readable shard: invalid header"):
        read_small_sets(["s-{0..1}.tar"], data)
    with pytest.raises(DataError, match=r"No shard s-2\.tar in .*; check the folder and the name"):
        PhotoSets(["s-{0,2}.tar"], data)


@pytest.mark.parametrize("name", ["z.tar", "z.tar.gz"])
def test_the_error_for_a_compressed_tar_says_to_unpack_it(data: Path, name: str) -> None:
    (data / name).write_bytes(gzip.compress((data / "s-0.tar").read_bytes()))
    with pytest.raises(DataError, match="is not a readable shard: it is compressed; unpack it first"):
        read_small_sets([name], data)


def test_pictures_of_json_that_are_missing_are_listed_and_counted(data: Path) -> None:
    (data / "COCO_val2014_000000000042.jpg").write_bytes(make_png("red"))
    names = ["val2014/COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000043.jpg"]
    (data / "set.json").write_text(json.dumps([{"image": name, "caption": "a"} for name in names]))
    opened = open_set("set.json", data)
    assert opened.missing == names[1:]
    assert list(opened.iterate_pictures()) == [
        CaptionedPicture(names[0], data / "COCO_val2014_000000000042.jpg", ("a",))
    ]
    assert open_training_set(SourceConfig("set.json"), data).left_out == {"picture is not there": 1}
