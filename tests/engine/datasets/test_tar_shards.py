"""Read captioned pictures from shards and JSON, write shards, and refuse other files with the right words."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from shard_writing import make_png, write_shard

from engine.datasets.caption_files import read_annotations
from engine.datasets.captioned_pictures import CaptionedPicture, compute_data_digest, normalise_caption
from engine.datasets.picture_reading import load_pictures, read_pictures
from engine.datasets.tar_shards import find_shards, read_shards, write_captioned_shard
from engine.errors import DataError


def test_a_shard_gives_its_pictures_with_their_captions(tmp_path: Path) -> None:
    captions = json.dumps({"captions": ["a red tile", "", "red"]}).encode()
    shard = write_shard(
        tmp_path / "s-000.tar", {"a.png": make_png("red"), "a.json": captions, "b.png": make_png("blue")}
    )
    first, second = read_shards([shard])
    assert (first.key, first.captions) == ("a", ("a red tile", "red"))
    assert second.captions == ()
    pixels, readable, failures = load_pictures([first, second], 8)
    assert pixels.shape == (2, 8, 8, 3) and readable == [first, second] and not failures
    assert (pixels[0] == [255, 0, 0]).all() and (pixels[1] == [0, 0, 255]).all()


def test_shards_are_found_by_a_pattern_in_order(tmp_path: Path) -> None:
    for name in ("s-001.tar", "s-000.tar", "t-000.tar"):
        (tmp_path / name).touch()
    assert [path.name for path in find_shards(["s-*.tar"], tmp_path)] == ["s-000.tar", "s-001.tar"]
    with pytest.raises(DataError, match=r"No shard x-\*\.tar in"):
        find_shards(["x-*.tar"], tmp_path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.txt": b"no picture"}, "has no picture"),
        ({"a.png": make_png("red"), "a.json": b"{"}, "is not a readable shard"),
        ({"a.png": make_png("red"), "a.json": b'{"captions": 3}'}, "captions should be a text or a list"),
        (
            {"a.png": make_png("red"), "a.json": b"[3]"},
            r"readable shard: a: JSON should be an object, not \[3\]",
        ),
        ({"a.png": make_png("red"), "a.txt": b"\xff"}, "is not a readable shard: a: 'utf-8' codec"),
        ({"a.png": make_png("red"), "in/b.bmp": b"BM"}, "sample in/b has no picture .jpg, jpeg, png, webp"),
        ({"a.png": make_png("red"), "a.PNG": make_png("blue")}, "a.PNG is there twice"),
    ],
)
def test_broken_samples_are_named(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(read_shards([write_shard(tmp_path / "s.tar", members)]))


def test_a_file_that_is_no_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(DataError, match=r"s\.tar"):
        list(read_shards([tmp_path / "s.tar"]))


def test_files_that_belong_to_no_sample_are_passed_over(tmp_path: Path) -> None:
    members = {"__meta__/x.png": b"m", ".hidden.png": b"h", "README": b"r", "a.b/c.seg.png": b"s"}
    shard = write_shard(tmp_path / "s.tar", {**members, "a.b/c.png": make_png("red"), "a.b/c.jpg": b"first"})
    (only,) = read_shards([shard])
    # The suffix that stands first in the list of suffixes decides which of several pictures is taken.
    assert (only.key, only.picture) == ("a.b/c", b"first")


def test_the_bytes_of_a_written_tar_depend_on_its_content_alone(tmp_path: Path) -> None:
    """Compare with the digest of the tar that WebDataset's own writer made of these rows."""
    rows = [
        (CaptionedPicture("a.b/ü x.png", b"\x89PNG first"), {"captions": ["größe"], "n": 1}),
        (CaptionedPicture("a_b/ü x.jpg", b"\xff\xd8\xff second"), {"captions": []}),
        (CaptionedPicture("a_b_ü_x", b"RIFF third" * 100), {"captions": ["x" * 3000]}),
        (CaptionedPicture("k" * 150 + ".png", b"\x89PNG" + bytes(20000)), {}),
    ]
    path = tmp_path / "s.tar"
    write_captioned_shard(path, rows)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == (
        "70179d72dddedc7cf62721b52a688fc11f1ad56861aa8e42b0c4918bfb00e043"
    )
    assert [(picture.key, picture.captions) for picture in read_shards([path])] == [
        ("a_b_ü_x", ("größe",)),
        ("a_b_ü_x-0", ()),
        ("a_b_ü_x-1", ("x" * 3000,)),
        ("k" * 150, ()),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]


def write_annotations(folder: Path, content: object) -> Path:
    path = folder / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_annotations_join_rows_of_one_image(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(make_png("red"))
    rows = [{"image": "x.png", "caption": "one"}, {"image": "x.png", "caption": ["two", "three"]}]
    annotations = read_annotations(write_annotations(tmp_path, rows), tmp_path)
    (captioned,) = annotations.pictures
    assert captioned.captions == ("one", "two", "three") and annotations.missing == []
    assert load_pictures([captioned], 4)[0].shape == (1, 4, 4, 3)


def karpathy_content(*rows: tuple[str, str, list[str]], folder: str = "") -> dict[str, object]:
    """Return a file in Karpathy's layout; rows: file name, split and captions of each picture."""
    filepath = {"filepath": folder} if folder else {}
    return {
        "dataset": "made up",
        "images": [
            {
                "filename": name,
                "split": split,
                **filepath,
                "sentences": [{"raw": raw, "tokens": []} for raw in texts],
            }
            for name, split, texts in rows
        ],
    }


@pytest.mark.parametrize("folder", ["", "val2014"])
def test_only_the_split_of_karpathys_layout_is_read(tmp_path: Path, folder: str) -> None:
    (tmp_path / "val2014").mkdir()
    (tmp_path / folder / "x.png").write_bytes(make_png("red"))
    content = karpathy_content(
        ("x.png", "test", ["one", "two"]),
        ("y.png", "test", ["three"]),
        ("z.png", "train", ["four"]),
        folder=folder,
    )
    annotations = read_annotations(write_annotations(tmp_path, content), tmp_path)
    assert [captioned.captions for captioned in annotations.pictures] == [("one", "two")]
    assert [Path(name).name for name in annotations.missing] == ["y.png"]
    with pytest.raises(DataError, match="no split 'val'; it has: test, train"):
        read_annotations(tmp_path / "a.json", tmp_path, "val")


def test_folders_in_names_may_be_left_out(tmp_path: Path) -> None:
    """ALBEF's files name flickr30k-images/NAME, while people give the folder flickr30k-images itself."""
    (tmp_path / "x.png").write_bytes(make_png("red"))
    rows = [{"image": "flickr30k-images/x.png", "caption": ["one"]}]
    (captioned,) = read_annotations(write_annotations(tmp_path, rows), tmp_path).pictures
    assert captioned.picture == tmp_path / "x.png" and captioned.key == "flickr30k-images/x.png"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not readable JSON"),
        ("3", "should be a list of objects"),
        ([], "names no pictures"),
        ([{"image": "x.png"}], "should be a list of objects"),
        ([{"image": "x.png", "caption": 3}], "captions should be a text or a list"),
        ({"images": []}, "no split 'test'; it has: none"),
        ({"annotations": []}, "not in Karpathy's layout .KeyError"),
        ({"images": [{"split": "test", "filename": "x.png"}]}, "not in Karpathy's layout .KeyError"),
        (
            [{"image": "gone.png", "caption": "a"}],
            r"None of the 1 pictures .* first is gone\.png.* another set's",
        ),
    ],
)
def test_other_annotations_are_refused(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_annotations(write_annotations(tmp_path, content), tmp_path)


def test_the_digest_of_a_set_changes_with_its_captions_and_pictures(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(make_png("red"))
    captioned, other_caption = CaptionedPicture("x", path, ("a",)), CaptionedPicture("x", path, ("b",))
    digests = {
        compute_data_digest(pictures) for pictures in ([captioned], [other_caption], [captioned, captioned])
    }
    path.write_bytes(make_png("blue") + b" ")
    digests |= {
        compute_data_digest([captioned]),
        compute_data_digest([CaptionedPicture("x", path.read_bytes(), ("a",))]),
    }
    assert len(digests) == 5


def test_unreadable_pictures_are_listed(tmp_path: Path) -> None:
    good, bad = CaptionedPicture("good", make_png("red"), ("a",)), CaptionedPicture("bad", b"no", ("b",))
    pixels, readable, failures = load_pictures([bad, good], 4)
    assert len(pixels) == 1 and readable == [good] and [failure.path.name for failure in failures] == ["bad"]
    assert np.array_equal(pixels[0, 0, 0], [255, 0, 0])
    with pytest.raises(DataError, match="None of the 1 pictures"):
        load_pictures([bad], 4)
    squares = read_pictures([good, bad], 4)
    assert np.array_equal(squares[0], pixels[0]) and squares[1] is None


def test_captions_are_normalised_as_lavis_does() -> None:
    assert normalise_caption('  A "Big"\tdog! runs (fast), mr. x #1 . ') == "a big dog runs fast , mr x 1"
    assert normalise_caption(" . ") == ""
    assert normalise_caption("word " * 60) == " ".join(["word"] * 50)


def test_braces_without_their_extra_say_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "s-0.tar", {"red.png": make_png("red"), "red.txt": b"a red wall"})
    monkeypatch.setitem(sys.modules, "braceexpand", None)  # as though it were not installed
    assert find_shards(["s-*.tar"], tmp_path) == [tmp_path / "s-0.tar"]
    with pytest.raises(DataError, match=r"pip install 'qseek\[train\]'"):
        find_shards(["s-{0..0}.tar"], tmp_path)
