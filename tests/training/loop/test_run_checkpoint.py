"""The checkpoint of a run is replaced whole or not at all, and refused under other settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.errors import TrainingError
from training.loop.optimizer import OptimConfig, make_optimizer
from training.loop.run_checkpoint import CHECKPOINT, Checkpointer, check_same_settings
from training.loop.trained_weights import TrainedWeights


def test_every_setting_that_differs_is_named_with_both_values() -> None:
    then = {"views": 2, "seed": 1, "text": "a"}
    with pytest.raises(TrainingError) as caught:
        check_same_settings(then, {"views": 4, "seed": 1, "crop": 0.5}, "out/shards")
    assert str(caught.value) == (
        "out/shards was made with other settings (views: 2 then, 4 now; text: 'a' then, None now; "
        "crop: None then, 0.5 now); go on with them, or use another folder for the run."
    )
    check_same_settings(then, dict(then), "out/shards")


def test_a_save_that_fails_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = TrainedWeights(nn.Linear(3, 2), "float32")
    config = OptimConfig(steps=4, batch=1, lr=0.1)
    checkpointer = Checkpointer(tmp_path, weights, make_optimizer(weights.masters, config), config, {})
    checkpointer.save(1)
    before = (tmp_path / CHECKPOINT).read_bytes()
    save = torch.save

    def save_half(state: Any, file: Any) -> None:
        save({"model": state["model"]}, file)
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="No space"):
        checkpointer.save(2)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    assert checkpointer.resume() == 1
