"""A stream is a function of (seed, step); broken shards and pictures are counted, named and replaced."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shard_writing import make_png, write_shard
from tiny import write_pictures

from engine.datasets.captioned_sets import ListShard, SourceConfig, open_training_set, read_small_sets
from engine.datasets.picture_folders import read_picture_folder
from engine.datasets.picture_reading import load_pictures
from engine.datasets.tar_shards import TarShard, find_shards
from engine.errors import DataError
from training.batches.crops import draw_crop_box, make_random_crop
from training.batches.mixture import MIXTURE_PERIOD, Mixture
from training.batches.picture_stream import PictureStream
from training.batches.sample_order import SampleOrder
from training.distributed.world import World

ALONE = World(0, 1)


def write_lettered_shard(path: Path, names: str, **more: bytes) -> Path:
    """Write a tar with a picture and two captions for each letter; the width of a picture tells its letter."""
    members: dict[str, bytes] = {}
    for letter in names:
        members[f"{letter}.png"] = make_png("red", (ord(letter) - 80, 20))
        members[f"{letter}.json"] = json.dumps({"captions": [f"{letter} one", f"{letter} two"]}).encode()
    return write_shard(path, members | more)


def write_annotations(folder: Path, rows: list[dict[str, Any]], name: str = "a.json") -> None:
    for row in rows:
        (folder / row["image"]).write_bytes(make_png("blue", (30, 30)))
    (folder / name).write_text(json.dumps(rows))


def measure(image: Image.Image, draws: np.random.Generator) -> np.ndarray:
    """Return the width of a picture and a random number, which are all that an augmentation depends on."""
    return np.array([image.width, int(draws.integers(1000))], dtype=np.int64)


def open_stream(
    data: Path, *sources: SourceConfig, batch: int = 4, seed: int = 0, world: World = ALONE
) -> PictureStream:
    return PictureStream(sources, data, batch=batch, seed=seed, augment=measure, world=world, workers=2)


def assert_same_batch(first: Any, second: Any) -> None:
    assert np.array_equal(first.images, second.images) and first.captions == second.captions
    assert np.array_equal(first.picture_ids, second.picture_ids)


def test_every_sample_once_an_epoch_in_an_order_of_its_own(tmp_path: Path) -> None:
    for number in range(5):
        write_lettered_shard(tmp_path / f"s-{number}.tar", "abcdefg"[: 3 + number % 4])
    source = open_training_set(SourceConfig("s-*.tar"), tmp_path)
    assert source.count == 3 + 4 + 5 + 6 + 3
    order = SampleOrder(source, (1, 0), shards_at_once=2)
    epochs = [[order(e * source.count + i)().picture_id for i in range(source.count)] for e in range(2)]
    assert all(sorted(epoch) == list(range(source.count)) for epoch in epochs) and epochs[0] != epochs[1]
    again = SampleOrder(source, (1, 0), shards_at_once=2)
    assert [again(i)().picture_id for i in reversed(range(source.count))] == epochs[0][::-1]
    assert [SampleOrder(source, (2, 0))(i)().picture_id for i in range(source.count)] != epochs[0]


def test_a_resumed_stream_reads_on_bit_exactly(tmp_path: Path) -> None:
    write_lettered_shard(tmp_path / "s-0.tar", "abcde")
    write_lettered_shard(tmp_path / "s-1.tar", "fghij")
    write_annotations(
        tmp_path, [{"image": "x.png", "caption": ["one", "two"]}, {"image": "y.png", "caption": "three"}]
    )
    sources = SourceConfig("s-{0..1}.tar"), SourceConfig("a.json", 0.5)
    first = open_stream(tmp_path, *sources)
    expected = [first[step] for step in range(12)]
    assert len({pairs.captions[0] for pairs in expected}) > 3
    again = open_stream(tmp_path, *sources)
    for step in (7, 8, 3, 11):
        assert_same_batch(again[step], expected[step])
    other = open_stream(tmp_path, *sources, seed=1)
    assert any(other[step].captions != expected[step].captions for step in range(4))
    halves = [open_stream(tmp_path, *sources, world=World(rank, 2)) for rank in range(2)]
    for step in (0, 5):
        assert [c for half in halves for c in half[step].captions] == expected[step].captions
    for opened in (first, again, other, *halves):
        opened.close()


def test_every_set_has_its_exact_share_in_a_period() -> None:
    mixture = Mixture([3.0, 1.0, 0.001], seed=4)
    seen = [mixture(number) for number in range(2 * MIXTURE_PERIOD)]
    counts = Counter(source for source, _ in seen)
    assert [counts[n] for n in range(3)] == [14996, 4998, 6]
    for source in range(3):
        num_before = [before for number, before in seen if number == source]
        assert num_before == list(range(counts[source]))
    assert (
        mixture(MIXTURE_PERIOD + 17) == seen[MIXTURE_PERIOD + 17]
        and seen[:100] != seen[MIXTURE_PERIOD : MIXTURE_PERIOD + 100]
    )
    early = Counter(source for source, _ in seen[:1000])
    # The sets are mixed: one does not follow the other.
    assert 650 < early[0] < 850


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_must_be_positive(weights: list[float]) -> None:
    with pytest.raises(DataError, match="each must be above 0"):
        Mixture(weights, 0)


def test_a_weight_that_is_too_small_to_be_read_is_refused() -> None:
    with pytest.raises(DataError, match=r"weight of set 2 is 1e-06, less than 1 in 10,000"):
        Mixture([1.0, 1e-6], 0)


def test_broken_shards_are_skipped_counted_and_named(tmp_path: Path) -> None:
    write_lettered_shard(tmp_path / "s-0.tar", "abc")
    (tmp_path / "s-1.tar").write_bytes(b"not a tar" * 300)
    whole_bytes = write_lettered_shard(tmp_path / "s-2.tar", "abc").read_bytes()
    (tmp_path / "s-2.tar").write_bytes(whole_bytes[: len(whole_bytes) // 3])
    write_shard(tmp_path / "s-3.tar", {"a.bin": b"x"})
    stream = open_stream(tmp_path, SourceConfig("s-{0..4}.tar"))
    report = "\n".join(stream.report())
    assert stream.count == 3 and report.count("shard skipped") == 4
    assert all(f"s-{number}.tar" in report for number in (1, 2, 3, 4)) and "s-0.tar" not in report
    with pytest.raises(DataError, match=r"None of the 1 shards of s-1\.tar"):
        open_stream(tmp_path, SourceConfig("s-1.tar"))


def test_bad_samples_are_replaced_counted_and_named(tmp_path: Path) -> None:
    bad = {
        "x.png": b"no picture",
        "x.json": b'{"caption": "bad"}',
        "y.png": make_png("red"),
        "z.png": make_png("red"),
    }
    write_lettered_shard(tmp_path / "s-0.tar", "abcd", **bad, **{"z.txt": b"   "})
    stream = open_stream(tmp_path, SourceConfig("s-0.tar"), batch=7)
    pairs = [stream[step] for step in range(3)]
    assert {c[0] for p in pairs for c in p.captions} == set("abcd")
    stream.close()
    assert stream.failures["it has no caption"] >= 2 and stream.failures["it cannot be read"] >= 1
    report = "\n".join(stream.report())
    assert "samples replaced: it has no caption" in report and "x: " in report
    for first, second in zip(
        pairs, [open_stream(tmp_path, SourceConfig("s-0.tar"), batch=7)[s] for s in range(3)], strict=True
    ):
        assert_same_batch(first, second)


def test_a_set_without_a_readable_picture_ends_the_run(tmp_path: Path) -> None:
    write_shard(tmp_path / "s-0.tar", {"a.png": b"no", "a.txt": b"a"})
    with pytest.raises(DataError, match=r"100 samples in a row of s-0\.tar could not be read, the last"):
        open_stream(tmp_path, SourceConfig("s-0.tar"))[0]


def test_captions_of_a_tar_are_read_from_text_and_json(tmp_path: Path) -> None:
    texts = {
        "a.txt": b" from txt ",
        "b.json": b'{"text": "t", "caption": "c"}',
        "c.json": b'{"captions": ["one", "two"]}',
    }
    pictures = {f"{name}.jpg": make_png("red") for name in "abc"}
    tar_shard = TarShard(write_shard(tmp_path / "s.tar", {**texts, **pictures}))
    captions = {
        s.pair.key: s.pair.captions for s in (tar_shard.read_sample(row) for row in range(tar_shard.count))
    }
    assert captions == {"a": ("from txt",), "b": ("c",), "c": ("one", "two")}


def test_every_caption_of_a_list_is_a_sample(tmp_path: Path) -> None:
    rows = [{"image": "x.png", "caption": ["one", "two"]}, {"image": "y.png", "caption": "three"}]
    write_annotations(tmp_path, [*rows, {"image": "z.png", "caption": " "}])
    (tmp_path / "a.json").write_text(
        json.dumps([*json.loads((tmp_path / "a.json").read_text()), {"image": "gone", "caption": "g"}])
    )
    source = open_training_set(SourceConfig("a.json"), tmp_path)
    (only,) = source.shards
    assert isinstance(only, ListShard)
    captions = [
        (s.pair.captions[0], s.picture_id) for s in (only.read_sample(row) for row in range(source.count))
    ]
    assert captions == [("one", 0), ("two", 0), ("three", 1)]
    assert source.left_out == {"picture is not there": 1, "no caption": 1}
    ids = open_stream(tmp_path, SourceConfig("a.json"), SourceConfig("a.json"), batch=40)[0].picture_ids
    # A picture has another number in another set.
    assert len(set(ids.tolist())) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "in/x.png", "text": "one"}\n\n{"file_name": "y.png", "captions":'
            ' ["two", "three"]}\n{"file_name": "in/x.png", "text": "more"}\n{"file_name": "gone.png", "text": "g"}\n',
        ),
        (
            "metadata.csv",
            'file_name,label,text\nin/x.png,3,one\ny.png,,"two"\n'
            "y.png,,three\nin/x.png,3,more\ngone.png,,g\n",
        ),
    ],
)
def test_a_picture_folder_is_read_with_its_metadata(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "in").mkdir()
    for place in ("in/x.png", "y.png"):
        (tmp_path / place).write_bytes(make_png("red"))
    (tmp_path / name).write_text(content)
    pictures, missing = read_picture_folder(tmp_path)
    assert [(p.key, p.captions) for p in pictures] == [
        ("in/x.png", ("one", "more")),
        ("y.png", ("two", "three")),
    ]
    assert missing == ["gone.png"] and pictures[0].picture == tmp_path / "in/x.png"
    assert open_training_set(SourceConfig("."), tmp_path).count == 4


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "x.png"}',
            r'line 1: a row needs "file_name" and one of text, caption',
        ),
        ("metadata.jsonl", "[1]", "is not a JSON object"),
        ("metadata.jsonl", "{", "cannot be read"),
        ("metadata.csv", "name,text\nx.png,one\n", "line 2: a row needs"),
        ("metadata.csv", "file_name,text\nx.png,one\n", r"None of the 1 pictures .*the first is x\.png"),
        ("other.txt", "", r"has no metadata\.jsonl or metadata\.csv"),
    ],
)
def test_folders_without_usable_metadata_are_refused(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        read_picture_folder(tmp_path)


def test_braces_stand_for_several_shards(tmp_path: Path) -> None:
    for name in ("s-08.tar", "s-09.tar", "s-10.tar"):
        (tmp_path / name).touch()
    assert [p.name for p in find_shards(["s-{09..10}.tar"], tmp_path)] == ["s-09.tar", "s-10.tar"]
    with pytest.raises(DataError, match=r"No shard s-11\.tar"):
        find_shards(["s-{10..11}.tar"], tmp_path)
    assert len(find_shards(["s-{10..11}.tar"], tmp_path, missing_ok=True)) == 2
    with pytest.raises(DataError, match="unbalanced braces"):
        find_shards(["s-{10..11.tar"], tmp_path)
    with pytest.raises(DataError, match=r"No shard t-0\.tar"):
        find_shards(["t-{0..1}.tar"], tmp_path, missing_ok=True)


def test_crops_are_inside_and_large_enough() -> None:
    draws = np.random.default_rng(0)
    boxes = [draw_crop_box((100, 80), 0.5, draws) for _ in range(300)]
    shares, ratios = [], []
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 80
        shares.append((right - left) * (bottom - top) / 8000)
        ratios.append((right - left) / (bottom - top))
    assert 0.48 < min(shares) < 0.55 and max(shares) > 0.9
    assert min(ratios) > 0.73 and max(ratios) < 1.37
    # The picture is too narrow for any draw, so its central crop is taken.
    assert draw_crop_box((1000, 10), 0.5, draws) == (493, 0, 506, 10)


def test_random_crops_mirror_half() -> None:
    left_red = Image.new("RGB", (40, 40), "blue")
    left_red.paste("red", (0, 0, 20, 40))
    augment = make_random_crop(16, 0.9)
    crops = [augment(left_red, np.random.default_rng(seed)) for seed in range(100)]
    assert crops[0].shape == (16, 16, 3) and crops[0].dtype == np.uint8
    assert 30 < sum(bool(crop[8, 0, 2] > 128) for crop in crops) < 70


def test_small_sets_of_every_kind_are_read_alike(tmp_path: Path) -> None:
    """A shard, a JSON file and a folder with metadata hold two equal pictures each."""
    paths = write_pictures(tmp_path / "photos", ["a.png", "b.png"])
    captions = {"a.png": ["one", "two"], "b.png": ["three"]}
    rows = [{"image": name, "caption": texts} for name, texts in captions.items()]
    (tmp_path / "photos" / "set.json").write_text(json.dumps(rows))
    lines = [json.dumps({"file_name": name, "captions": texts}) for name, texts in captions.items()]
    (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(lines))
    members = {path.name: path.read_bytes() for path in paths}
    members |= {
        f"{name[0]}.json": json.dumps({"captions": texts}).encode() for name, texts in captions.items()
    }
    write_shard(tmp_path / "s-000.tar", dict(sorted(members.items())))
    for name in ("s-*.tar", "photos/set.json", "photos"):
        pictures = read_small_sets([name], tmp_path)
        assert [list(picture.captions) for picture in pictures] == list(captions.values()), name
        assert len(load_pictures(pictures, 8)[0]) == 2
    assert len(read_small_sets(["s-*.tar", "photos"], tmp_path)) == 4
    with pytest.raises(DataError, match="no-such"):
        read_small_sets(["no-such-*.tar"], tmp_path)
