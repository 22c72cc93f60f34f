"""Sets of captioned pictures: what a name stands for, and that every way to read a set finds the same in it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from shard_writing import picture, write_shard

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
    """s-0.tar, whose samples say in every known way what they show."""
    pictures = {f"{key}.png": picture("red", (8 + number, 8)) for number, key in enumerate(CAPTIONS)}
    write_shard(tmp_path / "s-0.tar", dict(sorted((TEXTS | pictures).items())))
    return tmp_path


def test_a_tar_has_the_same_captions_in_every_way_of_reading(data: Path) -> None:
    """What stage 1 learns from a small set, from a stream, what CapFilt ranks, and what an evaluation compares with."""
    small = read_small_sets(["s-*.tar"], data)
    assert {one.key: one.captions for one in small} == CAPTIONS
    source = open_training_set(SourceConfig("s-*.tar"), data)
    (shard,) = source.shards
    assert [shard.read_sample(row).pair for row in range(source.count)] == small
    photos = PhotoSets(["s-*.tar"], data)
    assert [photos[number] for number in range(len(photos))] == small and small[0].label == "tile"
    tasks = read_caption_items(data / "s-0.tar")
    assert [(task.id, task.references, task.picture) for task in tasks] == [
        (one.key, one.captions, one.picture) for one in small
    ]


def test_what_a_name_stands_for(data: Path) -> None:
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


def test_the_first_folder_that_has_a_set(data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert find_set_folder("s-{0..3}.tar", [empty, data]) == (data, "s-{0..3}.tar")
    assert find_set_folder("t-*.tar", [empty, data]) == (empty, "t-*.tar")
    assert len(read_small_sets([str(data / "s-0.tar")], empty)) == len(CAPTIONS)


def test_a_stream_leaves_broken_shards_out_and_a_small_set_refuses_them(data: Path) -> None:
    (data / "s-1.tar").write_bytes(b"not a tar" * 200)
    source = open_training_set(SourceConfig("s-{0..2}.tar"), data)
    assert source.names == ["s-0.tar"] and [one.path.name for one in source.broken] == ["s-1.tar", "s-2.tar"]
    assert source.broken[1].reason == f"No shard s-2.tar in {data}; check the folder and the name."
    with pytest.raises(DataError, match=r"s-1\.tar is not a readable shard: invalid header"):
        read_small_sets(["s-{0..1}.tar"], data)
    with pytest.raises(DataError, match=r"No shard s-2\.tar in .*; check the folder and the name"):
        PhotoSets(["s-{0,2}.tar"], data)


@pytest.mark.parametrize("name", ["z.tar", "z.tar.gz"])
def test_a_compressed_tar_is_to_be_unpacked(data: Path, name: str) -> None:
    (data / name).write_bytes(gzip.compress((data / "s-0.tar").read_bytes()))
    with pytest.raises(DataError, match="is not a readable shard: it is compressed; unpack it first"):
        read_small_sets([name], data)


def test_pictures_of_json_that_are_not_there(data: Path) -> None:
    (data / "COCO_val2014_000000000042.jpg").write_bytes(picture("red"))
    names = ["val2014/COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000043.jpg"]
    (data / "set.json").write_text(json.dumps([{"image": name, "caption": "a"} for name in names]))
    opened = open_set("set.json", data)
    assert opened.missing == names[1:]
    assert list(opened.iterate_pictures()) == [
        CaptionedPicture(names[0], data / "COCO_val2014_000000000042.jpg", ("a",))
    ]
    assert open_training_set(SourceConfig("set.json"), data).left_out == {"picture is not there": 1}
