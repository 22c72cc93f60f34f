"""The mean of models' weights, by the command and by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tiny import tiny_checkpoint, tiny_config

from engine.checkpoints.building import load_net
from ui.cli.main import main


def average(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["models", "average", *map(str, arguments)])


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [tiny_checkpoint(tmp_path / f"model{seed}", seed=seed) for seed in range(3)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_net(folder)[0].state_dict()


def test_the_mean(models: list[Path], tmp_path: Path) -> None:
    result = average(*models, tmp_path / "out", "--dtype", "float32")
    assert result.exit_code == 0 and "the mean of 3 models" in result.stderr
    each, got = [weights(folder) for folder in models], weights(tmp_path / "out")
    for name, value in got.items():
        torch.testing.assert_close(value, sum(one[name] for one in each) / 3)
    assert not torch.equal(got["qformer.queries"], each[0]["qformer.queries"])
    assert load_net(tmp_path / "out")[1].tokenizer.to_str() == load_net(models[0])[1].tokenizer.to_str()


def test_one_that_is_named_twice_counts_twice(models: list[Path], tmp_path: Path) -> None:
    average(models[0], models[1], models[0], tmp_path / "out", "--dtype", "float32")
    one, two, got = weights(models[0]), weights(models[1]), weights(tmp_path / "out")
    for name, value in got.items():
        torch.testing.assert_close(value, (2 * one[name] + two[name]) / 3)


def test_what_is_refused(models: list[Path], tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", replace(tiny_config(), match_weight=0.5))
    words = tiny_checkpoint(tmp_path / "words") / "tokenizer.json"
    words.write_text(words.read_text().replace('"dog"', '"dig"'))
    for arguments, reason in (
        ([models[0]], "1 model cannot be averaged"),
        ([models[0], other], "has another architecture than"),
        ([models[0], tmp_path / "words"], "has another vocabulary than"),
        ([models[0], tmp_path / "nothing"], "There is no model"),
    ):
        result = average(*arguments, tmp_path / "out")
        assert result.exit_code == 1 and reason in result.stderr and "Traceback" not in result.output
        assert not (tmp_path / "out").exists()
    result = average(models[0], models[1], models[2])
    assert result.exit_code == 1 and "is not empty; give a new folder" in result.stderr
