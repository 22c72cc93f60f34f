"""The log of a training run: progress lines, log.jsonl and TensorBoard; and the stop when a loss is not a number."""

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
    """The losses of a run: collected step by step, averaged over processes, and written as rows of the log.

    rows: the rows that were written, with numbers by name. operations: floating-point operations of a step; 0 before it
    is known. peak: the most operations a second of the device. Under torchrun every process makes the same calls;
    process 0 writes.
    """

    def __init__(
        self, folder: Path, config: OptimConfig, first: int, say: Callable[[str], None], device: torch.device
    ):
        """Open the log. first: number of steps that the run had made before. say: is called with progress lines."""
        self.folder, self.config, self.first, self.say, self.device = folder, config, first, say, device
        self.rows: list[dict[str, float]] = []
        self.operations, self.peak = 0, math.nan
        self._losses: list[dict[str, Tensor]] = []
        self._pace = Pace(0, None)
        self._board = _open_tensorboard(folder) if config.tensorboard and current_world().rank == 0 else None

    @contextmanager
    def count_operations(self, step: int) -> Iterator[None]:
        """Count the operations of the passes within this context, in the first step of the run alone.

        They give the share of the device's peak that the run uses (MFU). Passes that are computed again (checkpointed
        encoders, cached embeddings) count as often as they are computed.
        """
        if step != self.first:
            yield
            return
        with OperationCount() as count:
            yield
        self.operations = count.operations
        self.peak = peak_operations(self.device, self.config.dtype)
        # The first step is not timed, since it also warms everything up.
        self._pace = Pace(self.config.steps - step - 1, None)

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Collect the losses of a step. step: number of steps that the run has made, this one included."""
        # The first step is not timed.
        if step - self.first > 1:
            self._pace.step()
        self._losses.append({name: value.detach() for name, value in losses.items()})

    def check_losses(self, step: int) -> None:
        """Raise TrainingError, naming the step, when a loss since the last row is not a number."""
        if not self._losses:
            return
        local_losses = torch.stack([losses["loss"].float() for losses in self._losses])
        losses = sum_over_processes(local_losses) / current_world().size
        broken_rows = (~losses.isfinite()).nonzero()
        if len(broken_rows):
            row = int(broken_rows[0])
            number = step - len(losses) + row + 1
            raise TrainingError(
                f"The loss is {float(losses[row])} at step {number}; lower the learning rate "
                f"({self.config.lr}) and start again from {self.folder / 'checkpoint.pt'}."
            )

    def write_row(self, step: int) -> None:
        """Write a row with the mean of the losses since the last row, and with the speed of the run."""
        self.check_losses(step)
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

    def _write(self, step: int, row: dict[str, float], names: list[str], seconds_left: float | None) -> None:
        """Write a row to log.jsonl and TensorBoard, and say it. names: names of the losses in the row."""
        stored = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(stored) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and math.isfinite(value):
                    self._board.add_scalar(name, value, step)
        losses = "  ".join(f"{name} {row[name]:.4f}" for name in names)
        line = f"step {step}/{self.config.steps}  {losses}"
        if seconds_left is not None:
            line += f"  {row['samples_per_second']:.3g} samples/s  MFU {row['mfu']:.1%}"
            line += f"  {seconds_left / 60:.1f} min left"
        self.say(line)

    def close(self) -> None:
        """Close the files of TensorBoard."""
        if self._board is not None:
            self._board.close()


def _open_tensorboard(folder: Path) -> Any:
    """Return a writer of TensorBoard's files. Raise TrainingError when TensorBoard is not installed."""
    try:
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        raise TrainingError(
            "TensorBoard is not installed: pip install 'qseek[tensorboard]', or leave optim.tensorboard off "
            "(log.jsonl holds the same numbers)."
        ) from None
    return module.SummaryWriter(str(folder))
