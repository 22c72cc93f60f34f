"""Save a run, and go on from where it stopped.

A checkpoint holds weights, optimizer state, step and settings in one file that is replaced whole. A run goes on only
with the settings it was started with; otherwise the error names those that differ.
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
    """Nested settings by dotted name, rows as lists: what a checkpoint keeps to be compared."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten_settings(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


RESUMABLE_CHANGES = {"checkpoint_minutes", "log_every", "parallel", "tensorboard"}
"""Settings of `OptimConfig` that a resumed run may change."""
USE_THEM = "go on with them"


def check_same_settings(
    then: Mapping[str, Any], now: Mapping[str, Any], described_as: str, advice: str = USE_THEM
) -> None:
    """Raise TrainingError when a run would go on with other settings, naming each that differs with both its values.

    then: what the run was started with. now: what it would go on with. A setting that one of them lacks counts as None
    there. described_as: what the run has left, such as the path of its checkpoint. advice: what to do about it, beside
    using another folder.
    """
    differing = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if differing:
        values = "; ".join(f"{name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in differing)
        raise TrainingError(
            f"{described_as} was made with other settings ({values}); {advice}, or use another folder for the run."
        )


CHECKPOINT = "checkpoint.pt"


class Checkpointer:
    """The one checkpoint of a run: its weights, the state of its optimizer, its step and its settings.

    folder: where it lies, made where it is not there. config: with a dtype that is not "auto" any more. settings: plain
    values of the task. All processes of a run make the same calls; the first one writes.
    """

    def __init__(
        self,
        folder: Path,
        weights: TrainedWeights,
        optimizer: torch.optim.Optimizer,
        config: OptimConfig,
        settings: Mapping[str, Any],
    ):
        self.path = folder / CHECKPOINT
        self.weights, self.optimizer, self.config, self.settings = weights, optimizer, config, settings
        self._saved = time.monotonic()
        if current_world().rank == 0:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def is_late(self) -> bool:
        """Whether it is `checkpoint_minutes` since the last one was saved, or since the run began."""
        return time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes

    def save(self, step: int) -> None:
        """Replace the checkpoint in one step: a kill leaves the old one or the new one."""
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
        """Put back what the checkpoint holds, and return its step; 0 where there is none.

        Raises TrainingError for a checkpoint that cannot be read, was made with other settings, or holds another model.
        """
        if not self.path.exists():
            return 0
        state = self._read()
        self._check_settings(state)
        if not self.weights.load(state["model"]):
            raise TrainingError(f"{self.path} holds another model; use another folder for the run.")
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, moments in state["optimizer"]["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = shard_like(moments[name], trained[number])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def _read(self) -> dict[str, Any]:
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            return {**state, "config": dict(state["config"]), "step": int(state["step"])}
        except Exception as error:  # torch raises whatever its readers raise
            raise TrainingError(
                f"{self.path} is not a readable checkpoint ({type(error).__name__}); delete it to start again, or use "
                "another folder."
            ) from error

    def _check_settings(self, state: Mapping[str, Any]) -> None:
        compared = [field for field in fields(OptimConfig) if field.name not in RESUMABLE_CHANGES]
        old = state["config"]
        then = {
            f.name: old.get(f.name, f.default) for f in compared
        }  # a setting may be newer than the checkpoint
        now = {f.name: getattr(self.config, f.name) for f in compared}
        advice = USE_THEM
        if then["dtype"] != now["dtype"]:
            advice = advise_on_dtype(then["dtype"], self.weights.masters[0].device)
        settings = state.get("settings", self.settings)
        check_same_settings({**then, **settings}, {**now, **self.settings}, str(self.path), advice)


def is_finished(folder: Path, config: OptimConfig) -> bool:
    """Whether the run in a folder has made all its steps: `train` then only puts its weights back."""
    path = folder / CHECKPOINT
    try:
        return path.exists() and torch.load(path, weights_only=True, mmap=True)["step"] >= config.steps
    except Exception:  # unreadable: `train` says so
        return False
