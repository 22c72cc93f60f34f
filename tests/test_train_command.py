"""`qseek train` with --set and --dry-run: what it prints, and what it refuses."""

import re

import pytest
from click.testing import CliRunner, Result

from ui.cli import main


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
