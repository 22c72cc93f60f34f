"""`qseek train` with --set and --dry-run: what it prints, and what it refuses."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from training.recipes import recipe_catalogue
from ui.cli.main import main


def train(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", *arguments])


def test_the_plan_of_a_fine_tuning() -> None:
    result = train("retrieval", "--recipe", "coco-vit-g", "--dry-run", "--set", "train.batch=16")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split()[1:] for line in result.output.splitlines()[1:-2]}
    assert rows["all"][1] == "0" and 1_150e6 < int(rows["all"][0].replace(",", "")) < 1_190e6
    assert "12,650 of 16 pairs (16 a process), 202,400 in all; warm-up 1,000" in result.output
    assert re.search(r"estimated: [\d.]+ GiB", result.output)


def test_a_frozen_encoder_is_shown_as_frozen() -> None:
    result = train("stage1", "--recipe", "mini", "--dry-run")
    rows = {line.split()[0]: line.split()[1:] for line in result.output.splitlines()[1:-2]}
    assert rows["vision"][0] == "0" and int(rows["vision"][1].replace(",", "")) > 1e6
    assert rows["qformer"][1] == "0"


def test_the_plan_of_a_distillation() -> None:
    result = train("distill", "--recipe", "mini-encoder", "--dry-run")
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


EVERY = [
    (what, name)
    for what, made in recipe_catalogue.BY_KIND.items()
    for name in made
    if name.startswith("mini")
]


@pytest.mark.parametrize(("what", "name"), EVERY, ids=[f"{what} {name}" for what, name in EVERY])
def test_every_small_recipe_has_a_plan(what: str, name: str, tmp_path: Path) -> None:
    """Those that build on a run say that it is not there."""
    result = train(what, "--recipe", name, "--dry-run", "--data", str(tmp_path), "--runs", str(tmp_path))
    assert result.exit_code == 0 or "Error: " in result.stderr
    assert "Traceback" not in result.output and not isinstance(result.exception, AttributeError)
    if result.exit_code == 0:
        assert re.search(r"steps|drawn", result.output)


def test_the_plan_of_what_trains_in_phases_and_of_capfilt() -> None:
    lines = train("stage1", "--recipe", "mini-tuned", "--dry-run").output.splitlines()
    assert "before it, ITC and the encoder's parts from 7 on: 700 steps of 128 pairs" in lines[-1]
    lines = train("language", "--recipe", "mini-language", "--dry-run").output.splitlines()
    assert 3e6 < int(lines[1].split()[1].replace(",", "")) < 4e6 and "1,500 of 64 photos" in lines[-1]
    said = train("capfilt", "--recipe", "mini-capfilt", "--dry-run").output
    assert "10 captions drawn of each by mini" in said and "at least 0.5" in said and "score 0.8" in said


def test_a_runs_name_is_a_folders(tmp_path: Path) -> None:
    for name in ("../mine", " ", "a/b", "..", "."):
        result = train("stage1", "--recipe", "mini", "--name", name, "--data", str(tmp_path))
        assert result.exit_code == 1 and "is no folder's name" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stage1", "--recipe", "mini", "--set", "train.bacth=3"], "did you mean 'batch'?"),
        (["retrieval", "--recipe", "coco", "--dry-run"], "there are: mini, coco-vit-g, coco-vit-l"),
        (["stage1", "--recipe", "blip2-vit-g", "--dry-run", "--set", "start=x"], "not both"),
        (["stage1", "--recipe", "blip2-vit-g"], "give it with --data"),
    ],
)
def test_refusals(arguments: list[str], words: str) -> None:
    result = train(*arguments)
    assert result.exit_code == 1 and words in result.output
