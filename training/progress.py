"""What a run tells: one progress line, log.jsonl, TensorBoard; and the stop when a loss is not a number."""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from engine.errors import TrainingError
from training.distributed import total, world

if TYPE_CHECKING:
    from training.loop import OptimConfig

# Dense bfloat16 operations a second, from NVIDIA's data sheets; the first name that the GPU's contains.
PEAKS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "A10G": 70e12}


class OperationCount(TorchDispatchMode):
    """Adds up the floating-point operations of matrix products and convolutions, backward pass and all."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=out)
        return out


def peak_operations(device: torch.device, dtype: str) -> float:
    """Operations a second that the device can do at most: from its data sheet, else as a large product measures."""
    if device.type == "cuda" and dtype == "bfloat16":
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAKS.items():
            if known in name:
                return peak
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.ones(side, side, device=device, dtype=getattr(torch, dtype))
    best = math.inf
    for _ in range(4):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


class Progress:
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
        self._started = time.monotonic()
        self._board = _board(folder) if config.tensorboard and world().rank == 0 else None

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
        self._started = time.monotonic()  # the first step also warms everything up

    def add(self, losses: dict[str, Tensor]) -> None:
        self._losses.append({name: value.detach() for name, value in losses.items()})

    def check(self, step: int) -> None:
        """Raises TrainingError when a loss since the last row is not a number, naming its step."""
        if not self._losses:
            return
        losses = total(torch.stack([losses["loss"].float() for losses in self._losses])) / world().size
        broken = (~losses.isfinite()).nonzero()
        if len(broken):
            number = step - len(losses) + int(broken[0]) + 1
            raise TrainingError(
                f"The loss is {float(losses[int(broken[0])])} at step {number}; lower the learning rate "
                f"({self.config.lr}) and start again from {self.folder / 'checkpoint.pt'}."
            )

    def log(self, step: int) -> None:
        """One row: the mean of the losses since the last one, and how fast it goes."""
        from training.loop import learning_rate

        self.check(step)
        names = list(self._losses[-1])
        means = torch.stack(
            [torch.stack([losses[name].float() for losses in self._losses]).mean() for name in names]
        )
        values = (total(means) / world().size).tolist()
        self._losses = []
        row: dict[str, float] = {"step": step, **dict(zip(names, values, strict=True))}
        seconds, done = time.monotonic() - self._started, step - self.first - 1  # the first was not timed
        speed = done / seconds if done else math.nan
        rate = speed * self.config.batch
        row |= {
            "lr": learning_rate(step - 1, self.config),
            "samples_per_second": rate,
            "mfu": self.operations * speed / self.peak,
        }
        self.rows.append(row)
        if world().rank == 0:
            self._write(step, row, names, (self.config.steps - step) / speed)

    def _write(self, step: int, row: dict[str, float], names: list[str], left: float) -> None:
        stored = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(stored) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and math.isfinite(value):
                    self._board.add_scalar(name, value, step)
        losses = "  ".join(f"{name} {row[name]:.4f}" for name in names)
        line = f"step {step}/{self.config.steps}  {losses}"
        if math.isfinite(left):
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
