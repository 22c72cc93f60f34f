"""`qseek caption` prints what a model writes; here tiny language models with random weights write."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from random_blip2 import random_captioner, save_captioner_folder
from tiny import (
    SIDE,
    tiny_checkpoint,
    tiny_config,
    tiny_net,
    tiny_tokenizer,
    write_pictures,
)
from tiny_language import save_tiny_captioner

from engine.blip2.generation import ANSWER, CAPTION
from engine.checkpoints.saving import save_checkpoint
from engine.models.loading import load_captioner
from engine.models.photo_captioners import load_photo_captioner
from engine.pictures.opening import open_picture
from engine.pictures.squares import squash
from ui.cli.main import main
from ui.reports.text_forms import path_fields


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_captioner("opt", tmp_path_factory.mktemp("models") / "tiny-opt")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "photos", ["a.png", "b.png", "c.png"])


@pytest.fixture(autouse=True)
def no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSEEK_INDEX", str(tmp_path / "index"))
    monkeypatch.delenv("QSEEK_CAPTION_MODEL", raising=False)


def run_caption(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["caption", *map(os.fspath, map(str, arguments))], stdin)


def read_pictures(paths: list[Path]) -> np.ndarray:
    return np.stack([squash(open_picture(path, least_side=2 * SIDE), SIDE) for path in paths])


def test_captions_are_those_of_the_model(model: Path, photos: list[Path]) -> None:
    result = run_caption(*photos, "--model", model, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in photos]
    expected = load_captioner(str(model)).caption(read_pictures(photos), options=CAPTION)
    assert [row["caption"] for row in rows] == expected and len(set(expected)) > 1


def test_a_question_is_answered_by_the_model(model: Path, photos: list[Path]) -> None:
    result = run_caption(photos[0], "--model", model, "--question", "what is it?", "--json")
    (expected,) = load_captioner(str(model)).answer(read_pictures(photos[:1]), ["what is it?"], ANSWER)
    assert json.loads(result.stdout)["caption"] == expected


def test_a_prompt_and_a_seed_change_the_caption(model: Path, photos: list[Path]) -> None:
    texts = [
        run_caption(photos[0], "--model", model, "--beams", 1, *more).stdout
        for more in ([], ["--prompt", "two"], ["--sample", "--seed", 1], ["--sample", "--seed", 2])
    ]
    assert len(set(texts)) == 4
    assert run_caption(photos[0], "--model", model, "--sample", "--seed", 1).stdout == texts[2]


def test_paths_come_from_stdin_and_photos_that_cannot_be_read_are_named(
    model: Path, photos: list[Path]
) -> None:
    photos[1].write_bytes(b"no picture")
    result = run_caption("--model", model, stdin="\n".join(map(str, photos)).encode())
    assert result.exit_code == 3
    assert [line.partition("\t")[0] for line in result.stdout.splitlines()] == [
        str(photos[0]),
        str(photos[2]),
    ]
    assert "1 photo could not be read" in result.stderr and "b.png" in result.stderr


def test_wrong_input_is_refused_in_plain_words(model: Path, photos: list[Path], tmp_path: Path) -> None:
    retrieval = tiny_checkpoint(tmp_path / "retrieval")
    headless = tmp_path / "headless"
    # Retrieval folders of transformers have no captioning head either.
    save_checkpoint(headless, tiny_net(replace(tiny_config(), has_captions=False)), tiny_tokenizer())
    cases = [
        ([photos[0], "--model", headless], 1, "blip2-opt-2.7b"),
        ([photos[0], "--model", retrieval, "--prompt", "a"], 1, "reads no prompt"),
        ([photos[0], "--model", retrieval, "--question", "why?"], 1, "blip2-opt-2.7b"),
        ([photos[0], "--model", model, "--prompt", " "], 1, "The prompt is empty"),
        ([photos[0], "--model", model, "--max-new-tokens", 500], 1, "more than the language model can write"),
        ([photos[0], "--model", model, "--results"], 2, "Leave PHOTO out."),
        (["--model", model, "--results"], 1, "holds no result"),
        ([photos[0], "--model", tmp_path / "none"], 1, "none"),
        ([photos[0], "--model", model, "--prompt", "word " * 200], 1, "Shorten it"),
        ([photos[0], "--model", model, "--prompt", "a", "--question", "b"], 2, "Give only one of them."),
        ([photos[0], "--model", model, "--question", " "], 1, "The question is empty"),
        (["--model", model], 1, "names no photo"),
    ]
    for arguments, code, words in cases:
        result = run_caption(*arguments, stdin=b"")
        assert result.exit_code == code and words in result.stderr, (arguments, result.output)
        assert "Traceback" not in result.output


def test_a_limit_below_the_usual_least_length_of_a_caption_is_accepted(
    model: Path, photos: list[Path]
) -> None:
    assert run_caption(photos[0], "--model", model, "--max-new-tokens", 2).exit_code == 0


def test_a_converted_folder_writes_the_same_captions(tmp_path: Path, photos: list[Path]) -> None:
    transformers_folder, qseek_folder = tmp_path / "theirs", tmp_path / "ours"
    save_captioner_folder(random_captioner("opt"), "opt", transformers_folder)
    run = CliRunner().invoke
    done = run(main, ["models", "convert", str(transformers_folder), str(qseek_folder)])
    assert done.exit_code == 0 and "qseek caption" in done.stderr, done.output
    expected = run_caption(*photos, "--model", transformers_folder).stdout
    assert run_caption(*photos, "--model", qseek_folder).stdout == expected != ""
    back = run(main, ["models", "convert", str(qseek_folder), str(tmp_path / "back"), "--to", "transformers"])
    assert back.exit_code == 0 and "from_pretrained loads it" in back.stderr, back.output
    assert (
        run_caption(*photos, "--model", tmp_path / "back").stdout
        == run_caption(*photos, "--model", qseek_folder).stdout
    )


def test_the_bundled_captioner_is_the_default_without_an_index(photos: list[Path]) -> None:
    from engine.models.photo_captioners import choose_default_captioner

    result = run_caption(photos[0], "--json", "--beams", 1, "--max-new-tokens", 6)
    assert result.exit_code == 0, result.output
    captioner = load_photo_captioner(choose_default_captioner())
    size = captioner.image_size
    picture = squash(open_picture(photos[0], least_side=2 * size), size)[None]
    options = replace(CAPTION, num_beams=1, max_new_tokens=6, min_new_tokens=6)
    assert json.loads(result.stdout)["caption"] == captioner.caption(picture, options=options)[0] != ""


def test_results_are_printed_again_with_captions(model: Path, photos: list[Path]) -> None:
    """Keep every field, read photos that are named in both ways, and keep the line of one that cannot be read."""
    odd_path = Path(os.fsdecode(os.fsencode(photos[0].parent) + b"/odd\xff.png"))
    photos[2].rename(odd_path)
    photos[1].write_bytes(b"no picture")
    rows = [
        {"rank": 1, "path": str(photos[0]), "score": 0.5, "itm": None},
        {"rank": 2, "path": str(photos[1]), "mine": [1]},
        {"rank": 3, **path_fields(odd_path), "caption": "old"},
    ]
    assert "path_base64" in rows[2]
    stdin = "".join(json.dumps(row) + "\n" for row in rows).encode()
    result = run_caption("--model", model, "--results", stdin=stdin)
    assert result.exit_code == 3 and "b.png: it is a text file" in result.stderr
    captions = load_captioner(str(model)).caption(read_pictures([photos[0], odd_path]))
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {**rows[0], "caption": captions[0]},
        {**rows[1], "caption": None},
        {**rows[2], "caption": captions[1]},
    ]


@pytest.mark.parametrize("line", [b"words", b'{"text": "a dog"}', b'{"path": 3}', b"[1]", b"\xff"])
def test_a_line_that_is_not_a_result_is_refused(model: Path, photos: list[Path], line: bytes) -> None:
    first = json.dumps({"path": str(photos[0])}).encode()
    result = run_caption("--model", model, "--results", stdin=first + b"\n" + line + b"\n")
    assert result.exit_code == 1 and "Line 2 of stdin is not a result with a photo" in result.stderr


def test_a_captioner_that_shares_an_encoder_is_written_by_convert(tmp_path: Path, photos: list[Path]) -> None:
    run = CliRunner().invoke
    whole = save_tiny_captioner("opt", tmp_path / "whole")
    search = tiny_net(tiny_config())
    search.vision.load_state_dict(load_captioner(str(whole), dtype="float32").net.vision.state_dict())
    save_checkpoint(tmp_path / "search", search, tiny_tokenizer())
    command = ["models", "convert", str(whole), str(tmp_path / "shared")]
    refused = run(main, [*command, "--share-encoder", "search", "--to", "transformers"])
    assert refused.exit_code == 2 and "transformers' folders hold their encoder" in refused.stderr
    done = run(main, [*command, "--share-encoder", "search"])
    assert done.exit_code == 0, done.output
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "shared")]
    assert sizes[1] < sizes[0]
    shared, full = (run_caption(*photos, "--model", tmp_path / name).stdout for name in ("shared", "whole"))
    assert shared == full != ""
    searching = run(
        main, ["models", "convert", str(tmp_path / "search"), str(tmp_path / "x"), "--share-encoder", "whole"]
    )
    assert searching.exit_code == 2 and "is for captioners" in searching.stderr


def test_a_captioner_that_was_not_taught_to_answer_says_so(tmp_path: Path, photos: list[Path]) -> None:
    folder = save_tiny_captioner("opt", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["language"]["question"] = None
    (folder / "config.json").write_text(json.dumps(config))
    result = run_caption(photos[0], "--model", folder, "--question", "What is it?")
    assert result.exit_code == 1 and "was not taught to answer questions. Those were: " in result.stderr
    assert result.stdout == ""
    from engine.checkpoints.captioner_reading import answers_questions

    assert not answers_questions(folder)
    assert run_caption(photos[0], "--model", folder).exit_code == 0
