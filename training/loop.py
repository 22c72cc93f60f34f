"""One flat training loop for every task: warm-up and cosine per step, bf16, checkpoints, exact resume.

With `dtype="bfloat16"` the model computes in bfloat16 while the optimizer keeps and updates float32 master weights
(mixed precision, arXiv:1710.03740; bfloat16 needs no loss scaling).

A task gives a model and the losses of a step number. All randomness of a step (which samples, crops, dropout,
negatives) is drawn from (seed, step), so a run resumed from a checkpoint repeats the same losses without any
state of generators being kept.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from engine.errors import TrainingError


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule. lr: peak; falls by a cosine to min_lr after `warmup` steps of linear rise.

    steps: optimizer steps in all. batch: samples a step. clip: largest gradient norm, 0 = none. Weight decay acts
    on matrices only (BLIP-2, section 3.4 leaves it open; LAVIS and BERT do the same).
    """

    steps: int
    batch: int
    lr: float
    min_lr: float = 0.0
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 0.0
    seed: int = 0
    dtype: str = "float32"
    checkpoint_minutes: float = 5.0
    log_every: int = 50


class Task(Protocol):
    """What is trained. `losses` returns the total under "loss", and its parts for the log."""

    @property
    def model(self) -> nn.Module: ...

    def losses(self, step: int) -> dict[str, Tensor]: ...


def learning_rate(step: int, config: OptimConfig) -> float:
    """Linear warm-up, then cosine, both per step; step counts from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * min(1.0, done)))


class Weights:
    """What is trained of a model: its parameters, and float32 masters where the model computes in bfloat16.

    In float32 the masters are the parameters themselves.
    """

    def __init__(self, model: nn.Module, dtype: str):
        self.model = model
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.masters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.lowered = dtype != "float32"
        if self.lowered:
            self.masters = [p.detach().float().clone().requires_grad_() for p in self.masters]
            self._cast(torch.bfloat16)
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]

    def take_gradients(self) -> None:
        """Before the optimizer's step: the parameters' gradients become the masters'."""
        if self.lowered:
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None

    def give_values(self) -> None:
        """After it: the masters' values become the parameters'."""
        if self.lowered:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.masters)

    def raise_again(self) -> None:
        """Training is over: the model is float32 again and holds the masters' values."""
        if self.lowered:
            self._cast(torch.float32)
            self.give_values()

    def _cast(self, dtype: torch.dtype) -> None:
        """What is trained alone: frozen parts and running statistics keep their precision."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def state(self) -> dict[str, Tensor]:
        """Trained values in float32, and buffers."""
        named = dict(zip(self.names, self.masters, strict=True))
        return {name: value.detach() for name, value in [*named.items(), *self.model.named_buffers()]}

    def load(self, state: dict[str, Tensor]) -> bool:
        """Put a `state` back; False, and nothing changed, when it is another model's."""
        own = self.state()
        if state.keys() != own.keys() or any(state[name].shape != own[name].shape for name in own):
            return False
        for name, value in own.items():
            value.copy_(state[name])
        self.give_values()
        return True


def make_optimizer(weights: Sequence[Tensor], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW without weight decay on 1-D parameters (norms, biases) and scalars."""
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def seed_step(seed: int, step: int) -> None:
    """Make everything torch draws in this step a function of (seed, step)."""
    torch.manual_seed((seed << 32) + step)


def train(
    task: Task, config: OptimConfig, folder: Path, *, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, float]]:
    """Train `task.model` in place and return the log, one row every `log_every` steps.

    folder: receives `log.jsonl` and `checkpoint.pt` (weights, optimizer, step); when a checkpoint is there the
    run goes on from it. say: called with a progress line. Raises TrainingError when the checkpoint was made with
    other settings (naming them) or a loss is not a number (naming the step); the last checkpoint stays good.
    KeyboardInterrupt saves a checkpoint first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = Weights(task.model, config.dtype)
    optimizer = make_optimizer(weights.masters, config)
    first = _resume(folder, weights, optimizer, config)
    rows: list[dict[str, float]] = []
    started = saved = time.monotonic()
    sums: dict[str, Tensor] = {}
    step = first
    try:
        while step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            # --- a single training step -------------------------------------------------------------
            seed_step(config.seed, step)
            losses = task.losses(step)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            weights.take_gradients()
            if config.clip:
                nn.utils.clip_grad_norm_(weights.masters, config.clip)
            optimizer.step()
            weights.give_values()
            # ----------------------------------------------------------------------------------------
            step += 1
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()
            if step % config.log_every == 0 or step == config.steps:
                count = min((step - 1) % config.log_every + 1, step - first)  # fewer right after a resume
                rows.append(_log(folder, step, first, count, sums, config, time.monotonic() - started, say))
                sums = {}
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                _save(folder, weights, optimizer, config, step)
                saved = time.monotonic()
    except KeyboardInterrupt:
        _save(folder, weights, optimizer, config, step)
        raise
    _save(folder, weights, optimizer, config, step)
    weights.raise_again()
    return rows


def _log(
    folder: Path, step: int, first: int, count: int, sums: dict[str, Tensor], config: OptimConfig,
    seconds: float, say: Callable[[str], None],
) -> dict[str, float]:  # fmt: skip
    row = {"step": step} | {name: float(value) / count for name, value in sums.items()}
    if not math.isfinite(row["loss"]):
        raise TrainingError(
            f"The loss is {row['loss']} between steps {step - count + 1} and {step}; lower the learning rate "
            f"({config.lr}) and start again from {folder / 'checkpoint.pt'}."
        )
    rate = (step - first) * config.batch / max(seconds, 1e-9)
    left = (config.steps - step) * config.batch / rate
    row |= {"lr": learning_rate(step - 1, config), "samples_per_second": rate}
    with open(folder / "log.jsonl", "a") as log:
        log.write(json.dumps(row) + "\n")
    losses = "  ".join(f"{name} {row[name]:.4f}" for name in sums)
    say(f"step {step}/{config.steps}  {losses}  {rate:.0f} samples/s  {left / 60:.1f} min left")
    return row


def _save(
    folder: Path, weights: Weights, optimizer: torch.optim.Optimizer, config: OptimConfig, step: int
) -> None:
    """Replace the checkpoint atomically: a kill leaves the old one or the new one."""
    state = {
        "model": weights.state(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "config": asdict(config),
    }
    torch.save(state, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def _resume(folder: Path, weights: Weights, optimizer: torch.optim.Optimizer, config: OptimConfig) -> int:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    ours = asdict(config)
    free = {"checkpoint_minutes", "log_every"}
    other = [
        f"{name}: {state['config'].get(name)!r} then, {value!r} now"
        for name, value in ours.items()
        if name not in free and state["config"].get(name) != value
    ]
    if other:
        raise TrainingError(
            f"{path} was made with other settings ({'; '.join(other)}); use them, or another --output folder."
        )
    if not weights.load(state["model"]):
        raise TrainingError(f"{path} holds another model; use another --output folder.")
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
