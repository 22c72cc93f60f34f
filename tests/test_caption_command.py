"""qseek caption as people run it, with tiny language models: what it prints is what the model writes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from test_captioner_parity import random_theirs, save_theirs
from tiny import SIDE, tiny_checkpoint, write_pictures
from tiny_language import save_tiny

from engine.blip2.caption_checkpoint import load_captioner
from engine.blip2.captioner import ANSWER, CAPTION
from engine.blip2.preprocess import squash
from engine.pictures import open_picture
from ui.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("opt", tmp_path_factory.mktemp("models") / "tiny-opt")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "photos", ["a.png", "b.png", "c.png"])


def caption(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["caption", *map(os.fspath, map(str, arguments))], stdin)


def pictures(paths: list[Path]) -> np.ndarray:
    return np.stack([squash(open_picture(path, least_side=2 * SIDE), SIDE) for path in paths])


def test_captions_are_the_models(model: Path, photos: list[Path]) -> None:
    result = caption(*photos, "--model", model, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in photos]
    want = load_captioner(str(model)).caption(pictures(photos), how=CAPTION)
    assert [row["caption"] for row in rows] == want and len(set(want)) > 1


def test_a_question(model: Path, photos: list[Path]) -> None:
    result = caption(photos[0], "--model", model, "--question", "what is it?", "--json")
    (want,) = load_captioner(str(model)).answer(pictures(photos[:1]), ["what is it?"], ANSWER)
    assert json.loads(result.stdout)["caption"] == want


def test_a_prompt_changes_the_text(model: Path, photos: list[Path]) -> None:
    texts = [
        caption(photos[0], "--model", model, "--beams", 1, *more).stdout
        for more in ([], ["--prompt", "two"], ["--sample", "--seed", 1], ["--sample", "--seed", 2])
    ]
    assert len(set(texts)) == 4
    assert caption(photos[0], "--model", model, "--sample", "--seed", 1).stdout == texts[2]


def test_paths_from_stdin_and_photos_that_cannot_be_read(model: Path, photos: list[Path]) -> None:
    photos[1].write_bytes(b"no picture")
    result = caption("--model", model, stdin="\n".join(map(str, photos)).encode())
    assert result.exit_code == 3
    assert [line.partition("\t")[0] for line in result.stdout.splitlines()] == [
        str(photos[0]),
        str(photos[2]),
    ]
    assert "1 photo could not be read" in result.stderr and "b.png" in result.stderr


def test_bad_input_is_plain(model: Path, photos: list[Path], tmp_path: Path) -> None:
    retrieval = tiny_checkpoint(tmp_path / "retrieval")
    cases = [
        ([photos[0], "--model", retrieval], 1, "blip2-opt-2.7b"),
        ([photos[0], "--model", tmp_path / "none"], 1, "none"),
        ([photos[0]], 2, "--model"),
        ([photos[0], "--model", model, "--prompt", "word " * 200], 1, "Shorten it"),
        ([photos[0], "--model", model, "--prompt", "a", "--question", "b"], 2, "give one of them"),
        ([photos[0], "--model", model, "--question", " "], 1, "empty"),
        (["--model", model], 1, "names no photo"),
    ]
    for arguments, code, words in cases:
        result = caption(*arguments, stdin=b"")
        assert result.exit_code == code and words in result.stderr, (arguments, result.output)
        assert "Traceback" not in result.output


def test_an_answer_may_be_short(model: Path, photos: list[Path]) -> None:
    """A limit below the caption's least length is taken."""
    assert caption(photos[0], "--model", model, "--max-new-tokens", 2).exit_code == 0


def test_transformers_folders_are_converted(tmp_path: Path, photos: list[Path]) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    save_theirs(random_theirs("opt"), "opt", theirs)
    run = CliRunner().invoke
    done = run(main, ["models", "convert", str(theirs), str(ours)])
    assert done.exit_code == 0 and "qseek caption" in done.stderr, done.output
    assert caption(*photos, "--model", ours).stdout == caption(*photos, "--model", theirs).stdout != ""
    back = run(main, ["models", "convert", str(ours), str(tmp_path / "back"), "--to", "transformers"])
    assert back.exit_code == 0 and "from_pretrained loads it" in back.stderr, back.output
    assert caption(*photos, "--model", tmp_path / "back").stdout == caption(*photos, "--model", ours).stdout
