"""CapFilt writes shards that other trainings read; a stopped run goes on to equal bytes; bad input is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capfilt_runs import CONFIG, load_matcher, read_shard_json, run_in_workspace, run_train_command
from click.testing import CliRunner
from shard_writing import write_shard
from tiny import tiny_checkpoint, tiny_config, tiny_model, write_pictures
from tiny_language import save_tiny_captioner

from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.captioned_sets import SourceConfig, read_small_sets
from engine.datasets.photo_numbers import PhotoSets
from engine.datasets.tar_shards import find_shards, read_shards, write_captioned_shard
from engine.errors import DataError
from engine.search.searcher import Searcher
from training.capfilt.capfilt import run_capfilt
from training.capfilt.caption_candidates import CandidateCaption, CandidateRanker
from training.loop.optimizer import OptimConfig
from training.stages.stage1 import run_stage1
from training.stages.stage1_config import Stage1Config
from ui.cli.main import main


def test_shards_are_what_the_other_trainings_read(workspace: Path) -> None:
    out = run_in_workspace(workspace)
    assert [path.name for path in sorted(out.glob("*.tar"))] == [f"out-00{n}.tar" for n in range(3)]
    pictures = list(read_shards(find_shards(["out-*.tar"], out)))
    before = list(read_shards(find_shards(["plain-*.tar"], workspace / "data")))
    assert [picture.key for picture in pictures] == list("abcdefg")
    assert [picture.picture for picture in pictures] == [picture.picture for picture in before]
    assert all(len(picture.captions) == 2 and len(set(picture.captions)) == 2 for picture in pictures)
    assert len({picture.captions for picture in pictures}) > 3
    for picture, fields in zip(pictures, read_shard_json(out), strict=True):
        assert tuple(fields["captions"]) == picture.captions and fields["synthetic"] == [True, True]
        assert fields["scores"] == sorted(fields["scores"], reverse=True) and fields["key"] == picture.key
    # The run's name is a set for stage 1, which trains on it.
    again = read_small_sets(["own-*.tar", "out/out-*.tar"], workspace / "data", workspace / "runs")
    assert [picture.captions for picture in again[3:]] == [picture.captions for picture in pictures]
    stage1 = Stage1Config(
        tiny_config(),
        (SourceConfig("out/out-*.tar"),),
        OptimConfig(steps=1, batch=4, lr=1e-4),
        views=1,
        start="tiny",
    )
    run_stage1(stage1, workspace / "data", workspace / "runs", workspace / "runs" / "next")
    assert (workspace / "runs" / "next" / "model" / "config.json").is_file()


def stop_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    captions, seen = CandidateRanker.rank_captions, []

    def stopping(self: CandidateRanker, *arguments: Any) -> list[list[CandidateCaption]]:
        seen.append(1)
        if len(seen) > calls:
            raise KeyboardInterrupt
        return captions(self, *arguments)

    monkeypatch.setattr(CandidateRanker, "rank_captions", stopping)


def test_a_stopped_run_goes_on_to_the_same_bytes(workspace: Path) -> None:
    expected = {path.name: path.read_bytes() for path in run_in_workspace(workspace, "whole/out").iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        # A shard has two batches, so this is within the second shard.
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run_in_workspace(workspace)
    out = workspace / "runs" / "out"
    assert [path.name for path in out.glob("*.tar")] == ["out-000.tar"]
    before = (out / "out-000.tar").stat().st_mtime_ns
    run_in_workspace(workspace)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected and len(expected) == 7
    assert (out / "out-000.tar").stat().st_mtime_ns == before
    # A report without its shard does not count as a shard.
    (out / "out-001.tar").unlink()
    run_in_workspace(workspace)
    assert (out / "out-001.tar").read_bytes() == expected["out-001.tar"]
    other = run_in_workspace(workspace, "whole/other", replace(CONFIG, seed=1))
    assert (other / "other-000.tar").read_bytes() != expected["out-000.tar"]


def test_processes_share_the_shards(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {path.read_bytes() for path in run_in_workspace(workspace, "alone").glob("*.tar")}
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, names in (("0", ["out-000.tar", "out-002.tar"]), ("1", ["out-001.tar"])):
        monkeypatch.setenv("RANK", rank)
        before = set((workspace / "runs" / "out").glob("*.tar"))
        out = run_in_workspace(workspace)
        assert sorted(path.name for path in {*out.glob("*.tar")} - before) == names
    assert {path.read_bytes() for path in out.glob("*.tar")} == expected


def test_a_stage_2_captioner_writes_captions_that_the_matcher_ranks(workspace: Path) -> None:
    save_tiny_captioner("opt", workspace / "runs" / "stage2" / "model")
    out = run_in_workspace(workspace, config=replace(CONFIG, captioner="stage2", keep=5, prompt="a"))
    searcher = Searcher(None, load_matcher(workspace))
    for fields in read_shard_json(out)[:3]:
        hits = searcher.match(workspace / "photos" / f"{fields['key']}.png", fields["captions"]).hits
        np.testing.assert_allclose(fields["scores"], [hit.score for hit in hits], atol=2e-3)
    assert len({text for fields in read_shard_json(out) for text in fields["captions"]}) > 10


def test_folders_and_json_are_sets_too(workspace: Path, tmp_path: Path) -> None:
    data = workspace / "data"
    write_pictures(data / "more", ["p.one.png", "p_one.png", "q.bmp"])
    rows = [{"image": f"more/{name}", "caption": "a dog"} for name in ("p.one.png", "p_one.png", "q.bmp")]
    (data / "mine.json").write_text(json.dumps(rows))
    photos = PhotoSets(["mine.json", "own-000.tar"], data)
    assert [photos[n].key for n in range(len(photos))] == [row["image"] for row in rows] + ["x", "y", "z"]
    config = replace(CONFIG, pictures=("mine.json",), originals="kept", keep=1)
    pictures = list(read_shards(find_shards(["out-*.tar"], run_in_workspace(workspace, config=config))))
    assert [picture.key for picture in pictures] == ["more_p_one", "more_p_one-0", "more_q"]
    assert all(picture.captions[0] == "a dog" and len(picture.captions) == 2 for picture in pictures)
    # Shards know no BMP, so it became a JPEG.
    assert isinstance(pictures[2].picture, bytes) and pictures[2].picture.startswith(b"\xff\xd8")


def test_a_shard_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def rows() -> Any:
        yield CaptionedPicture("a", b"\x89PNG"), {"captions": ["a"]}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_captioned_shard(tmp_path / "s-000.tar", rows())
    assert not list(tmp_path.glob("*.tar"))


def test_the_command_writes_shards_and_refuses_other_settings(workspace: Path) -> None:
    result = run_train_command(workspace, "shard_photos=4")
    assert result.exit_code == 0, result.output
    assert "7 of 7 photos with 14 captions, 14 of them drawn" in result.stderr
    assert len(list((workspace / "runs" / "mini-capfilt").glob("mini-capfilt-*.tar"))) == 2
    assert "2 of 2 shards are there" in run_train_command(workspace, "shard_photos=4").stderr
    changed = run_train_command(workspace, "shard_photos=4", "keep=1")
    assert changed.exit_code == 1 and "keep: 2 then, 1 now" in changed.stderr
    assert "mini-capfilt-labelled" in CliRunner().invoke(main, ["train", "capfilt"]).output


def test_photos_that_cannot_be_read_are_named(workspace: Path) -> None:
    good = write_pictures(workspace / "photos", ["good.png"])[0].read_bytes()
    write_shard(
        workspace / "data" / "bad-000.tar", {"b.png": b"no picture", "g.png": good, "h.jpg": good[:60]}
    )
    # A run that finds everything done names them again.
    for _ in range(2):
        result = run_train_command(workspace, "pictures=bad-*.tar")
        assert result.exit_code == 3, result.output
        assert "1 of 3 photos" in result.stderr and "2 unreadable" in result.stderr
        assert "2 photos could not be read" in result.stderr
        assert "  b: it is a text file" in result.stderr and "Traceback" not in result.output
    pictures = read_shards(find_shards(["*.tar"], workspace / "runs" / "mini-capfilt"))
    assert [picture.key for picture in pictures] == ["g"]


def write_model_without_head(workspace: Path) -> None:
    tiny_checkpoint(workspace / "runs" / "mute" / "model", replace(tiny_config(), has_captions=False))


def write_unreadable_shard(workspace: Path) -> None:
    write_shard(workspace / "data" / "bad-000.tar", {"b.png": b"no picture"})


def write_stage_2_model(workspace: Path) -> None:
    save_tiny_captioner("opt", workspace / "runs" / "stage2" / "model")


REFUSED: dict[str, tuple[Callable[[Path], None] | None, Sequence[str], str]] = {
    "no head": (
        write_model_without_head,
        ["captioner=mute"],
        "mute cannot write captions: it has no ITG head",
    ),
    "no such run": (None, ["captioner=nobody"], "There is no model 'nobody'"),
    "a captioner matches": (write_stage_2_model, ["matcher=stage2"], "is a captioner (BLIP-2 stage 2)"),
    "no sets": (None, ["pictures="], "`pictures` is empty"),
    "no such set": (None, ["pictures=none-*.tar"], "No shard none-*.tar in"),
    "all unreadable": (
        write_unreadable_shard,
        ["pictures=bad-000.tar"],
        "None of the 1 photos could be read (first: b:",
    ),
    "keep too many": (None, ["keep=11"], "keep is 11, but only 10 captions are drawn"),
    "keep more than all": (
        None,
        ["pictures=own-000.tar", "originals=ranked", "keep=14"],
        "keep is 14, but no photo has more than 3",
    ),
    "no captions": (None, ["originals=kept"], "None of the 4 photos of plain-000.tar has a caption"),
    "one set without": (
        None,
        ["pictures=own-000.tar,plain-001.tar", "originals=ranked"],
        "None of the 3 photos of plain-001.tar",
    ),
    "originals": (None, ["originals=some"], "it must be one of none, ranked, kept"),
    "nothing drawn": (None, ["per_photo=0"], "draw at least one caption"),
    "tokens": (
        None,
        ["min_tokens=9"],
        "they must be at least 1, and min_tokens must not be above max_tokens",
    ),
    "too long": (None, ["max_tokens=16"], "max_tokens is 16; tiny writes at most 15"),
    "top_p": (None, ["top_p=0"], "top_p is 0.0; it must be above 0"),
    "temperature": (None, ["temperature=-1"], "temperature is -1.0"),
    "batch": (None, ["photos_at_once=0"], "photos_at_once is 0; it must be at least 1"),
    "least": (None, ["least=1000"], "No caption scores at least 1000.0 (the best: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_settings_and_inputs_are_named(workspace: Path, case: str) -> None:
    prepare, changes, words = REFUSED[case]
    if prepare is not None:
        prepare(workspace)
    result = run_train_command(workspace, *changes)
    assert result.exit_code == 1 and words in result.stderr, result.output
    assert "Traceback" not in result.output


def test_tiny_is_a_model_that_writes(tmp_path: Path) -> None:
    """Several photos are captioned at once, each with captions of its own, and a seed always draws equal ones."""
    model = tiny_model(tmp_path)
    keys = model.compute_photo_keys(
        model.encode_patches(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    )
    drawn = [model.draw_captions(keys, 4, torch.Generator().manual_seed(1), max_length=10) for _ in range(2)]
    assert drawn[0] == drawn[1] and [len(texts) for texts in drawn[0]] == [4, 4, 4]
    assert len({text for texts in drawn[0] for text in texts}) > 6
    with pytest.raises(DataError):
        PhotoSets([], tmp_path)


def test_a_shard_tells_how_long_the_others_take(workspace: Path) -> None:
    lines: list[str] = []
    run_capfilt(CONFIG, workspace / "data", workspace / "runs", workspace / "runs" / "out", say=lines.append)
    shards = [line for line in lines if ".tar" in line]
    assert len(shards) == 3 and all(line.endswith(" min left") for line in shards)
    assert shards[-1].endswith("  0.0 min left")
