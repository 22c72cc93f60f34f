"""`qseek train` trains by a recipe, outlines a run with --dry-run, and refuses what does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.models.loading import load_captioner
from training.recipes import recipe_catalogue
from ui.cli.main import main


def run_train(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def test_a_fine_tuning_is_outlined() -> None:
    result = run_train("retrieval", "--recipe", "coco-vit-g", "--dry-run", "--set", "train.batch=16")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split()[1:] for line in result.output.splitlines()[1:-2]}
    assert rows["all"][1] == "0" and 1_150e6 < int(rows["all"][0].replace(",", "")) < 1_190e6
    assert "12,650 of 16 pairs (16 a process), 202,400 in all; warm-up 1,000" in result.output
    assert re.search(r"estimated: [\d.]+ GiB", result.output)


def test_a_frozen_encoder_is_outlined_as_frozen() -> None:
    result = run_train("stage1", "--recipe", "mini", "--dry-run")
    rows = {line.split()[0]: line.split()[1:] for line in result.output.splitlines()[1:-2]}
    assert rows["vision"][0] == "0" and int(rows["vision"][1].replace(",", "")) > 1e6
    assert rows["qformer"][1] == "0"


def test_a_distillation_is_outlined_by_phases() -> None:
    result = run_train("distill", "--recipe", "mini-encoder", "--dry-run")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[1].split()[0] == "encoder" and int(lines[1].split()[1].replace(",", "")) > 1e6
    assert [line.split(":")[0] for line in lines[3:]] == [
        "phase early",
        "phase late",
        "phase chain",
        "memory",
    ]
    assert "3,000 steps of 32 pictures, parts 0 to 6" in lines[3] and "not estimated" in lines[-1]


SMALL_RECIPES = [
    (kind, name)
    for kind, recipes in recipe_catalogue.BY_KIND.items()
    for name in recipes
    if name.startswith("mini")
]


@pytest.mark.parametrize(
    ("kind", "name"), SMALL_RECIPES, ids=[f"{kind} {name}" for kind, name in SMALL_RECIPES]
)
def test_every_small_recipe_is_outlined(kind: str, name: str, tmp_path: Path) -> None:
    """Outline each recipe, or read the error of a recipe that needs an earlier run."""
    result = run_train(kind, "--recipe", name, "--dry-run", "--data", str(tmp_path), "--runs", str(tmp_path))
    assert result.exit_code == 0 or "Error: " in result.stderr
    assert "Traceback" not in result.output and not isinstance(result.exception, AttributeError)
    if result.exit_code == 0:
        assert re.search(r"steps|drawn", result.output)


def test_runs_with_phases_and_capfilt_are_outlined() -> None:
    lines = run_train("stage1", "--recipe", "mini-tuned", "--dry-run").output.splitlines()
    assert "before it, ITC and the encoder's parts from 7 on: 700 steps of 128 pairs" in lines[-1]
    lines = run_train("language", "--recipe", "mini-language", "--dry-run").output.splitlines()
    assert 3e6 < int(lines[1].split()[1].replace(",", "")) < 4e6 and "1,500 of 64 photos" in lines[-1]
    output = run_train("capfilt", "--recipe", "mini-capfilt", "--dry-run").output
    assert "10 captions drawn of each by mini" in output
    assert "score at least 0.8" in output and "probability is at least 0.5" in output


def test_the_name_of_a_run_must_be_that_of_a_folder_below_runs(tmp_path: Path) -> None:
    for name in ("../mine", " ", "a/b", "..", "."):
        result = run_train("stage1", "--recipe", "mini", "--name", name, "--data", str(tmp_path))
        assert result.exit_code == 1 and "is not the name of a folder below RUNS" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stage1", "--recipe", "mini", "--set", "train.bacth=3"], "did you mean 'batch'?"),
        (["retrieval", "--recipe", "coco", "--dry-run"], "Give one of these: mini, coco-vit-g, coco-vit-l"),
        (["stage1", "--recipe", "blip2-vit-g", "--dry-run", "--set", "start=x"], "not both"),
        (["stage1", "--recipe", "blip2-vit-g"], "Give it with --data."),
    ],
)
def test_wrong_input_is_refused_in_plain_words(arguments: list[str], words: str) -> None:
    result = run_train(*arguments)
    assert result.exit_code == 1 and words in result.output


def test_a_small_captioner_is_trained_on_captions_and_questions(data: Path, tmp_path: Path) -> None:
    """Run the commands as a user does, with sets of the user's own."""
    common = ["--data", data, "--runs", tmp_path, "--set", f"start={data / 'opt'}"]
    small = ["--set", "train.steps=2", "--set", "train.batch=4"]
    short = ["--set", "prompts={}"]  # the Q-Former of these tests has room for 16 tokens
    mine = ["--set", "sources.0.path=captions.json"]
    result = run_train("caption", "--recipe", "mini-captions", *common, *small, *mine)
    assert result.exit_code == 0 and "8 samples in 1 set." in result.output, result.output
    assert load_captioner(str(tmp_path / "mini-captions" / "model")).image_size == 32
    options = [
        *common,
        *small,
        *short,
        "--set",
        "text_start=first",
        "--set",
        'sources=[{"path": "questions.json"}]',
    ]
    result = run_train("vqa", "--recipe", "mini-vqa", *options, "--set", "image_size=64")
    assert result.exit_code == 0, result.output
    assert load_captioner(str(tmp_path / "mini-vqa" / "model")).image_size == 64
    result = run_train("vqa", "--recipe", "mini-vqa", *options)
    assert result.exit_code == 1 and "image_size: 64 then, 0 now" in result.output
    result = run_train("vqa", "--recipe", "mini-vqa", *options, "--set", "sources.0.path=captions.json")
    assert result.exit_code == 1 and 'a row needs "image", "question" and "answer"' in result.output
    result = run_train(
        "caption", "--recipe", "mini-captions", *common, "--set", "sources.0.path=questions.json"
    )
    assert result.exit_code == 1 and '"image" and "caption"' in result.output


def test_runs_of_captioners_are_outlined_with_the_parameters_of_their_parts(
    data: Path, tmp_path: Path
) -> None:
    def rows(output: str) -> dict[str, list[int]]:
        return {
            line.split()[0]: [int(n.replace(",", "")) for n in line.split()[1:]]
            for line in output.splitlines()[2:-2]
        }

    result = run_train("caption", "--recipe", "coco-opt-2.7b", "--dry-run", "--set", "chunk=8")
    table = rows(result.output)
    assert table["language"] == [0, 2_651_596_800] and table["vision"][1] == 0 and table["vision"][0] > 980e6
    assert "11,065 of 256 pairs" in result.output and "364 px, prompts 'a photo of'" in result.output
    result = run_train("stage2", "--recipe", "blip2-flan-t5-xl", "--dry-run")
    table = rows(result.output)
    assert (
        table["vision"][0] == 0 and 2.7e9 < table["language"][1] < 2.9e9 and 100e6 < table["all"][0] < 110e6
    )
    common = ["--dry-run", "--data", data, "--set", f"start={data / 'opt'}", "--set", "text_start=first"]
    result = run_train("vqa", "--recipe", "mini-vqa", *common)
    net = load_captioner(str(data / "opt"), device="cpu", dtype="float32").net
    assert rows(result.output)["language"][1] == sum(p.numel() for p in net.language.parameters())
    result = run_train("stage2", "--recipe", "mini-captioner", "--dry-run")
    assert result.exit_code == 1 and "give its folder with --language" in result.output
    result = run_train("vqa", "--recipe", "mini-vqa", "--dry-run", "--runs", tmp_path, "--set", "start=x")
    assert result.exit_code == 1 and "There is no model to start from" in result.output
