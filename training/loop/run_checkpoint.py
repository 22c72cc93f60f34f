"""Save a run, and go on from where it stopped.

A checkpoint holds weights, optimizer state, step and settings in one file that is replaced whole. A run goes on only
with the settings it was started with; otherwise the error names those that differ.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from engine.errors import TrainingError
from training.distributed.world import world
from training.distributed.wrapping import full_tensors, sharded_like
from training.loop.optimizer import OptimConfig
from training.loop.trained_weights import Weights


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, rows as lists: what a checkpoint keeps to be compared."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat_settings(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


FREE = {"checkpoint_minutes", "log_every", "parallel", "tensorboard"}
"""Settings of `OptimConfig` that a resumed run may change."""


CHECKPOINT = "checkpoint.pt"


def save_run(
    folder: Path, weights: Weights, optimizer: torch.optim.Optimizer, config: OptimConfig,
    settings: Mapping[str, Any], step: int,
) -> None:  # fmt: skip
    """Replace the checkpoint atomically: a kill leaves the old one or the new one. All processes take part."""
    state = {
        "model": weights.state(),
        "optimizer": full_tensors(optimizer.state_dict()),
        "step": step,
        "config": asdict(config),
        "settings": dict(settings),
    }
    if world().rank == 0:
        torch.save(state, folder / "checkpoint.tmp")
        os.replace(folder / "checkpoint.tmp", folder / CHECKPOINT)


def finished(folder: Path, config: OptimConfig) -> bool:
    """Whether the run in a folder has made all its steps: `train` then only puts its weights back."""
    path = folder / CHECKPOINT
    try:
        return path.exists() and torch.load(path, weights_only=True, mmap=True)["step"] >= config.steps
    except Exception:  # unreadable: `train` says so
        return False


def resume_run(
    folder: Path, weights: Weights, optimizer: torch.optim.Optimizer, config: OptimConfig,
    settings: Mapping[str, Any],
) -> int:  # fmt: skip
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        then, step = state["config"], int(state["step"])
    except Exception as error:  # torch raises whatever its readers raise
        raise TrainingError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); delete it to start again, or use "
            "another folder."
        ) from error
    defaults = {f.name: f.default for f in fields(OptimConfig)}  # of settings newer than the checkpoint
    pairs = {
        name: (then.get(name, defaults[name]), value)
        for name, value in asdict(config).items()
        if name not in FREE
    }
    old = state.get("settings", settings)
    pairs |= {name: (old.get(name), settings.get(name)) for name in {**old, **settings}}
    other = [f"{name}: {was!r} then, {is_!r} now" for name, (was, is_) in pairs.items() if was != is_]
    if other:
        raise TrainingError(
            f"{path} was made with other settings ({'; '.join(other)}); use them, or another folder for the run."
        )
    if not weights.load(state["model"]):
        raise TrainingError(f"{path} holds another model; use another folder for the run.")
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for number, moments in state["optimizer"]["state"].items():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = sharded_like(moments[name], trained[number])
    optimizer.load_state_dict(state["optimizer"])
    return step
