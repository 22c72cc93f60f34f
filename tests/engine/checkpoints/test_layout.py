"""A checkpoint folder is written as a whole: a reader finds the old checkpoint or the new one, never files of both."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_net, tiny_tokenizer
from tiny_language import byte_tokenizer, save_tiny_captioner, tiny_captioner

from engine.checkpoints.captioner_reading import read_captioner
from engine.checkpoints.layout import CONFIG, LANGUAGE, TOKENIZER, WEIGHTS, open_checkpoint_folder
from engine.checkpoints.retrieval_reading import read_folder
from engine.checkpoints.saving import save_captioner, save_checkpoint


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def fill(half: Path, content: str) -> None:
    (half / LANGUAGE).mkdir()
    for name in (CONFIG, WEIGHTS, f"{LANGUAGE}/{WEIGHTS}"):
        (half / name).write_text(content)


@pytest.mark.parametrize("state", ["missing", "empty", "full"])
def test_a_folder_is_filled_in_one_step(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "deep" / "model"
    if state != "missing":
        folder.mkdir(parents=True)
    if state == "full":
        fill(folder, "old")
    before = contents(folder)
    with open_checkpoint_folder(folder) as half:
        fill(half, "new")
        seen = contents(folder)
    assert {name for name in seen if name in (CONFIG, WEIGHTS)} == {*before} & {CONFIG, WEIGHTS}
    assert contents(folder) == dict.fromkeys([CONFIG, WEIGHTS, f"{LANGUAGE}/{WEIGHTS}"], b"new")
    assert os.listdir(folder.parent) == ["model"] and sorted(os.listdir(folder)) == [
        CONFIG,
        LANGUAGE,
        WEIGHTS,
    ]


def test_an_empty_folder_is_filled_where_it_is_and_its_config_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder stays where it is: it may be a shell's current folder, or a volume, which no rename replaces."""
    monkeypatch.chdir(tmp_path)
    number, moved = tmp_path.stat().st_ino, []
    replace = os.replace

    def note(source: Path, target: Path) -> None:
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr("engine.checkpoints.layout.os.replace", note)
    with open_checkpoint_folder(Path()) as half:
        fill(half, "new")
    assert tmp_path.stat().st_ino == number and Path(CONFIG).read_text() == "new"
    assert moved[-1] == CONFIG and {*moved} >= {LANGUAGE, WEIGHTS}


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    fill(tmp_path / "disk", "old")
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    with open_checkpoint_folder(tmp_path / "model") as half:
        fill(half, "new")
    assert (tmp_path / "model").is_symlink() and (tmp_path / "disk" / CONFIG).read_text() == "new"


@pytest.mark.parametrize("state", ["missing", "empty"])
def test_an_error_leaves_no_checkpoint(tmp_path: Path, state: str) -> None:
    if state == "empty":
        (tmp_path / "model").mkdir()
    with pytest.raises(OSError, match="full"), open_checkpoint_folder(tmp_path / "model") as half:
        (half / CONFIG).write_text("new")
        raise OSError("full")
    assert contents(tmp_path) == {}


def test_a_stopped_save_leaves_the_old_checkpoint_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that is stopped leaves the old checkpoint; an earlier qseek left new weights beside the old config."""
    folder, words = tmp_path / "model", tiny_tokenizer()
    save_checkpoint(folder, tiny_net(tiny_config(), 0), words)
    before = contents(folder)

    def fail(path: Path, text: str) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", fail)
        save_checkpoint(folder, tiny_net(tiny_config(), 1), words)
    assert contents(folder) == before and os.listdir(tmp_path) == ["model"]
    net = tiny_net(tiny_config(), 1)
    save_checkpoint(folder, net, words)
    assert contents(folder).keys() == before.keys()
    saved = read_folder(folder).tensors["qformer.queries"].read()
    assert torch.equal(saved, net.state_dict()["qformer.queries"])


def test_a_captioner_and_its_language_model_are_replaced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_captioner("opt", tmp_path / "model")
    (folder / "README.md").write_text("what I trained")
    before = contents(folder)
    assert {CONFIG, WEIGHTS, f"{LANGUAGE}/{CONFIG}", f"{LANGUAGE}/{WEIGHTS}", f"{LANGUAGE}/{TOKENIZER}"} <= {
        *before
    }
    other = tiny_captioner("opt", seed=1)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("engine.checkpoints.saving.write_files", fail)
        save_captioner(folder, other, byte_tokenizer("opt"))
    assert contents(folder) == before
    save_captioner(folder, other, byte_tokenizer("opt"))
    after, source = contents(folder), read_captioner(folder)
    assert after.keys() == before.keys() and after["README.md"] == b"what I trained"
    assert torch.equal(source.tensors["projection.weight"].read(), other.projection.weight)
    theirs = other.language.state_dict()
    assert all(torch.equal(tensor.read(), theirs[name]) for name, tensor in source.language.tensors.items())
