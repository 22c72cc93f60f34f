"""Test the mean of models' weights: the command gives what is computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tiny import tiny_checkpoint, tiny_config

from engine.checkpoints.building import load_net
from ui.cli.main import main


def average_by_command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["models", "average", *map(str, arguments)])


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [tiny_checkpoint(tmp_path / f"model{seed}", seed=seed) for seed in range(3)]


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_net(folder)[0].state_dict()


def test_the_command_writes_the_mean_of_the_weights(models: list[Path], tmp_path: Path) -> None:
    result = average_by_command(*models, tmp_path / "out", "--dtype", "float32")
    assert result.exit_code == 0 and "the mean of 3 models" in result.stderr
    weights_of_models, actual = [load_weights(folder) for folder in models], load_weights(tmp_path / "out")
    for name, value in actual.items():
        torch.testing.assert_close(value, sum(weights[name] for weights in weights_of_models) / 3)
    assert not torch.equal(actual["qformer.queries"], weights_of_models[0]["qformer.queries"])
    assert load_net(tmp_path / "out")[1].tokenizer.to_str() == load_net(models[0])[1].tokenizer.to_str()


def test_a_model_that_is_named_twice_counts_twice(models: list[Path], tmp_path: Path) -> None:
    average_by_command(models[0], models[1], models[0], tmp_path / "out", "--dtype", "float32")
    first, second, actual = (load_weights(folder) for folder in (models[0], models[1], tmp_path / "out"))
    for name, value in actual.items():
        torch.testing.assert_close(value, (2 * first[name] + second[name]) / 3)


def test_models_without_a_useful_average_are_refused(models: list[Path], tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", replace(tiny_config(), match_weight=0.5))
    tokenizer = tiny_checkpoint(tmp_path / "words") / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"dog"', '"dig"'))
    for arguments, reason in (
        ([models[0]], "1 model cannot be averaged"),
        ([models[0], other], "has another architecture than"),
        ([models[0], tmp_path / "words"], "has another vocabulary than"),
        ([models[0], tmp_path / "nothing"], "There is no model"),
    ):
        result = average_by_command(*arguments, tmp_path / "out")
        assert result.exit_code == 1 and reason in result.stderr and "Traceback" not in result.output
        assert not (tmp_path / "out").exists()
    result = average_by_command(models[0], models[1], models[2])
    assert result.exit_code == 1 and "is not empty. Give a new or empty folder." in result.stderr
