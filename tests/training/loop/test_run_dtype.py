"""A run computes in bfloat16 on a machine that has it in hardware, and in float32 on others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.errors import TrainingError
from engine.models import devices
from training.loop.optimizer import OptimConfig
from training.loop.run_checkpoint import CHECKPOINT
from training.loop.run_dtype import fast_autocast, resolve_config_dtypes
from training.loop.train_loop import train

CPU = torch.device("cpu")
AUTO = OptimConfig(steps=2, batch=4, lr=0.05, dtype="auto")


class Sums:
    """A layer that learns sums in the dtype that its weights have."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.dtypes: list[torch.dtype] = []

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        self.dtypes.append(self.model.weight.dtype)
        x = torch.randn(4, 3).to(self.model.weight.dtype)
        return {"loss": (self.model(x)[:, 0] - x.sum(1)).square().mean().float()}


@dataclass(frozen=True)
class Recipe:
    optim: OptimConfig
    phases: tuple[OptimConfig, ...]
    first: OptimConfig | None = None
    name: str = "auto"


def set_bfloat16(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    """Let the machine answer whether it has bfloat16 in hardware."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": answer})


@pytest.mark.parametrize(("answer", "name"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_where_the_hardware_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool, name: str
) -> None:
    """The model computes in the dtype that auto was resolved to, and the checkpoint keeps it."""
    set_bfloat16(monkeypatch, answer)
    task = Sums()
    train(task, AUTO, tmp_path)
    assert task.dtypes == [devices.DTYPES[name]] * 2
    assert torch.load(tmp_path / CHECKPOINT)["config"]["dtype"] == name
    assert train(Sums(), replace(AUTO, dtype=name), tmp_path) == []  # the same run


def test_a_run_from_before_there_was_auto_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_bfloat16(monkeypatch, True)
    train(Sums(), replace(AUTO, dtype="bfloat16"), tmp_path)
    assert train(Sums(), AUTO, tmp_path) == []


def test_a_bfloat16_run_does_not_go_on_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_bfloat16(monkeypatch, True)
    train(Sums(), AUTO, tmp_path)
    set_bfloat16(monkeypatch, False)
    words = r"\(dtype: 'bfloat16' then, 'float32' now\); go on with them \(--set optim.dtype=bfloat16\), which is "
    with pytest.raises(
        TrainingError, match=words + r"up to 30 times as slow .*, or use another folder for the run"
    ):
        train(Sums(), AUTO, tmp_path)
    assert train(Sums(), replace(AUTO, dtype="bfloat16"), tmp_path) == []  # as the message says


def test_a_float32_run_does_not_go_on_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_bfloat16(monkeypatch, False)
    train(Sums(), AUTO, tmp_path)
    set_bfloat16(monkeypatch, True)
    with pytest.raises(TrainingError, match=r"\(--set optim.dtype=float32\), or use another folder"):
        train(Sums(), AUTO, tmp_path)


@pytest.mark.parametrize("answer", [True, False])
def test_every_part_of_a_recipe_is_resolved(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    set_bfloat16(monkeypatch, answer)
    expected = replace(AUTO, dtype="bfloat16" if answer else "float32")
    plain = replace(AUTO, dtype="float32")
    resolved = resolve_config_dtypes(Recipe(AUTO, (AUTO, plain), AUTO), CPU)
    assert resolved == Recipe(expected, (expected, plain), expected)
    assert resolve_config_dtypes(Recipe(plain, ()), CPU) == Recipe(plain, ())


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(
        TrainingError, match=r"optim.dtype is 'float16'; it must be auto or one of bfloat16, float32\."
    ):
        resolve_config_dtypes(Recipe(replace(AUTO, dtype="float16"), ()), CPU)


@pytest.mark.parametrize(("answer", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, answer: bool, dtype: torch.dtype
) -> None:
    set_bfloat16(monkeypatch, answer)
    layer = nn.Linear(3, 2)
    with fast_autocast(CPU):
        assert layer(torch.ones(1, 3)).dtype == dtype
