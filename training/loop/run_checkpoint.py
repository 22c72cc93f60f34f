"""Save a training run in a checkpoint, and go on from it.

A checkpoint holds weights, optimizer state, step and settings in a file that is replaced whole. A run goes on only with
the settings it was started with; otherwise the error names those that differ.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from engine.atomic import replace_file
from engine.errors import TrainingError
from training.distributed.world import current_world
from training.distributed.wrapping import gather_full_tensors, shard_like
from training.loop.optimizer import OptimConfig
from training.loop.run_dtype import advise_on_dtype
from training.loop.trained_weights import TrainedWeights


def flatten_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names, with tuples as lists, so that a checkpoint can keep and compare them.

    prefix: what is put before every name.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


RESUMABLE_CHANGES = {"checkpoint_minutes", "log_every", "parallel", "tensorboard"}
"""Settings of `OptimConfig` that a resumed run may change."""
USE_THEM = "go on with them"
"""Advice of an error about settings that differ from those of the checkpoint: to use the checkpoint's."""


def check_same_settings(
    then: Mapping[str, Any], now: Mapping[str, Any], described_as: str, advice: str = USE_THEM
) -> None:
    """Raise TrainingError when a run would go on with other settings, naming each that differs with both its values.

    then: the settings with which the run was started. now: those with which it would go on. A setting that is missing
    in one of them counts as None there. described_as: what the run has left, such as the path of its checkpoint.
    advice: what to do about it, beside using another folder.
    """
    differing = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if differing:
        values = "; ".join(f"{name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in differing)
        raise TrainingError(
            f"{described_as} was made with other settings ({values}); {advice}, or use another folder for the run."
        )


CHECKPOINT = "checkpoint.pt"
"""Name of the checkpoint in the folder of a run."""


class Checkpointer:
    """The checkpoint of a run: its weights, the state of its optimizer, its step and its settings.

    All processes of a run make the same calls; process 0 writes.
    """

    def __init__(
        self,
        folder: Path,
        weights: TrainedWeights,
        optimizer: torch.optim.Optimizer,
        config: OptimConfig,
        settings: Mapping[str, Any],
    ):
        """Make the folder of the run if it is missing.

        config: its dtype is resolved, not "auto". settings: plain values of the task that a resumed run must share.
        """
        self.path = folder / CHECKPOINT
        self.weights, self.optimizer, self.config, self.settings = weights, optimizer, config, settings
        self._saved = time.monotonic()
        if current_world().rank == 0:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def is_due(self) -> bool:
        """Return whether `checkpoint_minutes` have passed since the last checkpoint, or since the run began."""
        return time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes

    def save(self, step: int) -> None:
        """Replace the checkpoint at once: after a kill either the old or the new checkpoint is there, whole."""
        state = {
            "model": self.weights.state(),
            "optimizer": gather_full_tensors(self.optimizer.state_dict()),
            "step": step,
            "config": asdict(self.config),
            "settings": dict(self.settings),
        }
        if current_world().rank == 0:
            with replace_file(self.path) as file:
                torch.save(state, file)
        self._saved = time.monotonic()

    def resume(self) -> int:
        """Load the checkpoint into the weights and the optimizer, and return its step; 0 without a checkpoint.

        Raise TrainingError when the checkpoint cannot be read, was made with other settings, or holds another model.
        """
        if not self.path.exists():
            return 0
        state = self._read()
        self._check_settings(state)
        if not self.weights.load(state["model"]):
            raise TrainingError(f"{self.path} holds another model; use another folder for the run.")
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for number, moments in state["optimizer"]["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = shard_like(moments[name], weights[number])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def _read(self) -> dict[str, Any]:
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            return {**state, "config": dict(state["config"]), "step": int(state["step"])}
        except Exception as error:
            # torch raises whatever its readers raise.
            raise TrainingError(
                f"{self.path} is not a readable checkpoint ({type(error).__name__}); delete it to start again, or use "
                "another folder."
            ) from error

    def _check_settings(self, state: Mapping[str, Any]) -> None:
        """Raise TrainingError when a checkpoint was made with other settings."""
        compared = [field for field in fields(OptimConfig) if field.name not in RESUMABLE_CHANGES]
        old = state["config"]
        # A setting may be newer than the checkpoint; it then had its default.
        then = {field.name: old.get(field.name, field.default) for field in compared}
        now = {field.name: getattr(self.config, field.name) for field in compared}
        advice = USE_THEM
        if then["dtype"] != now["dtype"]:
            advice = advise_on_dtype(then["dtype"], self.weights.masters[0].device)
        settings = state.get("settings", self.settings)
        check_same_settings({**then, **settings}, {**now, **self.settings}, str(self.path), advice)


def is_finished(folder: Path, config: OptimConfig) -> bool:
    """Return whether the run in a folder has made all its steps, so that `train` would only load its weights."""
    path = folder / CHECKPOINT
    try:
        return path.exists() and torch.load(path, weights_only=True, mmap=True)["step"] >= config.steps
    except Exception:
        # The checkpoint is unreadable; `train` raises an error that says so.
        return False
