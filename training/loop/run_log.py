"""What a run tells: one progress line, log.jsonl, TensorBoard; and the stop when a loss is not a number."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import TrainingError
from engine.progress import Pace
from training.distributed.gathering import sum_over_processes
from training.distributed.world import current_world
from training.loop.device_peak import peak_operations
from training.loop.flop_count import OperationCount
from training.loop.optimizer import OptimConfig, learning_rate


class RunLog:
    """Collects a run's losses. `rows`: what was logged, the mean over all processes.

    Under torchrun every process makes the same calls; the first one writes.
    """

    def __init__(
        self, folder: Path, config: OptimConfig, first: int, say: Callable[[str], None], device: torch.device
    ):
        self.folder, self.config, self.first, self.say, self.device = folder, config, first, say, device
        self.rows: list[dict[str, float]] = []
        self.operations, self.peak = 0, math.nan
        self._losses: list[dict[str, Tensor]] = []
        self._pace = Pace(0, None)
        self._board = _board(folder) if config.tensorboard and current_world().rank == 0 else None

    @contextmanager
    def counted(self, step: int) -> Iterator[None]:
        """Around a step's passes; the run's first one is counted, for the share of the device's peak (MFU).

        What is computed again (checkpointed encoders, cached embeddings) counts as often as it is computed.
        """
        if step != self.first:
            yield
            return
        with OperationCount() as count:
            yield
        self.operations = count.operations
        self.peak = peak_operations(self.device, self.config.dtype)
        self._pace = Pace(self.config.steps - step - 1, None)  # the first step also warms everything up

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Keep the losses of a step, which brought the run to `step` steps."""
        if step - self.first > 1:  # the first one was not timed
            self._pace.step()
        self._losses.append({name: value.detach() for name, value in losses.items()})

    def check(self, step: int) -> None:
        """Raises TrainingError when a loss since the last row is not a number, naming its step."""
        if not self._losses:
            return
        losses = (
            sum_over_processes(torch.stack([losses["loss"].float() for losses in self._losses]))
            / current_world().size
        )
        broken = (~losses.isfinite()).nonzero()
        if len(broken):
            number = step - len(losses) + int(broken[0]) + 1
            raise TrainingError(
                f"The loss is {float(losses[int(broken[0])])} at step {number}; lower the learning rate "
                f"({self.config.lr}) and start again from {self.folder / 'checkpoint.pt'}."
            )

    def write_row(self, step: int) -> None:
        """One row: the mean of the losses since the last one, and how fast it goes."""
        self.check(step)
        names = list(self._losses[-1])
        means = torch.stack(
            [torch.stack([losses[name].float() for losses in self._losses]).mean() for name in names]
        )
        values = (sum_over_processes(means) / current_world().size).tolist()
        self._losses = []
        row: dict[str, float] = {"step": step, **dict(zip(names, values, strict=True))}
        pace = self._pace.measure()
        steps_per_second = pace.per_second or math.nan
        row |= {
            "lr": learning_rate(step - 1, self.config),
            "samples_per_second": steps_per_second * self.config.batch,
            "mfu": self.operations * steps_per_second / self.peak,
        }
        self.rows.append(row)
        if current_world().rank == 0:
            self._write(step, row, names, pace.seconds_left)

    def _write(self, step: int, row: dict[str, float], names: list[str], left: float | None) -> None:
        stored = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(stored) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and math.isfinite(value):
                    self._board.add_scalar(name, value, step)
        losses = "  ".join(f"{name} {row[name]:.4f}" for name in names)
        line = f"step {step}/{self.config.steps}  {losses}"
        if left is not None:
            line += (
                f"  {row['samples_per_second']:.3g} samples/s  MFU {row['mfu']:.1%}  {left / 60:.1f} min left"
            )
        self.say(line)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _board(folder: Path) -> Any:
    try:
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        raise TrainingError(
            "TensorBoard is not installed: pip install 'qseek[tensorboard]', or leave optim.tensorboard off "
            "(log.jsonl holds the same numbers)."
        ) from None
    return module.SummaryWriter(str(folder))
