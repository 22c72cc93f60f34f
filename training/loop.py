"""One flat training loop for every task: warm-up and cosine per step, bf16, checkpoints, exact resume.

Under torchrun every process runs it; the first one writes.

With `dtype="bfloat16"` the model computes in bfloat16 while the optimizer keeps and updates float32 master weights
(mixed precision, arXiv:1710.03740; bfloat16 needs no loss scaling).

A task gives a model and the losses of a step number. All randomness of a step (which samples, crops, dropout,
negatives) is drawn from (seed, step), so a run resumed from a checkpoint repeats the same losses without any
state of generators being kept.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.errors import TrainingError
from engine.models.malloc import keep_freed_memory
from training.distributed import (
    World,
    any_process,
    clip_gradients,
    full_tensors,
    replicated,
    sharded,
    sharded_like,
    world,
)
from training.layer_decay import learning_rate_scales
from training.progress import Progress
from training.stopping import StopNow, StopSignal


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule. lr: peak; falls by a cosine to min_lr after `warmup` steps of linear rise.

    steps: optimizer steps in all. batch: samples a step. clip: largest gradient norm, 0 = none. Weight decay acts
    on matrices only (BLIP-2, section 3.4 leaves it open; LAVIS and BERT do the same). layer_decay: see
    `layer_decay.py`. parallel: how several processes share the work, "ddp" (each holds the network) or "fsdp"
    (each holds a part of it). tensorboard: whether the log is written for it too.
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
    layer_decay: float = 1.0
    parallel: str = "ddp"
    tensorboard: bool = False


FREE = {"checkpoint_minutes", "log_every", "parallel", "tensorboard"}
"""Settings of `OptimConfig` that a resumed run may change."""


CHECKPOINT = "checkpoint.pt"
ASKED_EVERY = 8
"""Steps after which several processes agree on stopping and saving: to ask, each waits for its GPU."""


class Task(Protocol):
    """What is trained. `losses` returns the total under "loss", and its parts for the log.

    A task may have more. `through`, the door to its network (`distributed.Through`), lets several processes train it;
    `some_unused` says that its steps leave parameters out. `settings`: plain values that a resumed run must share.
    `losses_of(step, count)`, the losses of that many samples, lets an out-of-memory error say what fits. A task that
    runs its backward passes itself returns a loss without gradient.
    """

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
        """dtype: "bfloat16" makes masters; "float32" none (FSDP casts what it gathers and keeps float32 itself)."""
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
        return full_tensors(self._own())

    def _own(self) -> dict[str, Tensor]:
        named = dict(zip(self.names, self.masters, strict=True))
        return {name: value.detach() for name, value in [*named.items(), *self.model.named_buffers()]}

    def load(self, state: dict[str, Tensor]) -> bool:
        """Put a `state` back; False, and nothing changed, when it is another model's."""
        own = self._own()
        if state.keys() != own.keys() or any(state[name].shape != own[name].shape for name in own):
            return False
        for name, value in own.items():
            value.copy_(sharded_like(state[name], value))
        self.give_values()
        return True


def make_optimizer(
    weights: Sequence[Tensor], config: OptimConfig, scales: Sequence[float] | None = None
) -> torch.optim.AdamW:
    """AdamW without weight decay on 1-D parameters (norms, biases) and scalars.

    scales: what each weight's learning rate is multiplied by, 1 when not given; a group carries its own as "scale".
    """
    groups: dict[tuple[float, bool, type], list[Tensor]] = {}
    for weight, scale in zip(weights, scales or [1.0] * len(weights), strict=True):
        kind = type(weight.detach())  # sharded and whole weights cannot share a group
        groups.setdefault((scale, weight.ndim >= 2, kind), []).append(weight)
    described = [
        {"params": some, "weight_decay": config.weight_decay * decays, "scale": scale}
        for (scale, decays, _), some in groups.items()
    ]
    return torch.optim.AdamW(described, lr=config.lr, betas=config.betas, fused=True)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Make everything torch draws in this step a function of (seed, step), unlike in each process (dropout)."""
    torch.manual_seed((((rank << 16) + seed) << 32) + step)


def shared_draws(seed: int, step: int) -> torch.Generator:
    """Draws of a step that all processes make alike: which samples, which negatives."""
    return torch.Generator().manual_seed((1 << 62) + (seed << 32) + step)


def train(
    task: Task, config: OptimConfig, folder: Path, *, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, float]]:
    """Train `task.model` in place and return the log, one row every `log_every` steps.

    folder: receives `log.jsonl` and `checkpoint.pt` (weights, optimizer, step); when a checkpoint is there the run goes
    on from it. say: called with a progress line. Raises TrainingError when the checkpoint was made with other settings
    (naming them), a loss is not a number (naming the step; the last checkpoint stays good), or memory runs out (naming
    the largest batch that fitted). Ctrl-C ends the step and saves a checkpoint before KeyboardInterrupt is raised.
    """
    here = world()
    if here.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    weights = _spread(task, config, here)
    optimizer = make_optimizer(
        weights.masters, config, learning_rate_scales(weights.names, config.layer_decay)
    )
    settings = getattr(task, "settings", {})
    first = step = _resume(folder, weights, optimizer, config, settings)
    device = weights.masters[0].device
    if device.type == "cpu":
        keep_freed_memory()
    progress = Progress(folder, config, first, say, device)
    saved = time.monotonic()

    def save() -> None:
        _save(folder, weights, optimizer, config, settings, step)

    with StopSignal() as stop:
        try:
            while step < config.steps:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, config) * group["scale"]
                # --- a single training step ---------------------------------------------------------
                seed_step(config.seed, step, here.rank)
                optimizer.zero_grad(set_to_none=True)
                with progress.counted(step):
                    losses = task.losses(step)
                    if losses["loss"].requires_grad:  # else the task has run its backward passes itself
                        losses["loss"].backward()
                weights.take_gradients()
                if config.clip:
                    clip_gradients(weights.masters, config.clip)
                optimizer.step()
                weights.give_values()
                # ------------------------------------------------------------------------------------
                step += 1
                progress.add(losses)
                if step % config.log_every == 0 or step == config.steps:
                    progress.log(step)
                if here.size > 1 and step % ASKED_EVERY:
                    continue
                late = here.rank == 0 and time.monotonic() - saved > 60 * config.checkpoint_minutes
                stopping, saving = any_process((stop.asked, late), weights.masters[0].device)
                if stopping:
                    raise KeyboardInterrupt
                if saving:
                    progress.check(step)
                    save()
                    saved = time.monotonic()
        except StopNow:
            raise
        except KeyboardInterrupt:
            progress.check(step)
            save()
            raise
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            message = str(error).splitlines()[
                0
            ]  # and let go of the step's tensors, which its traceback holds
        else:
            message = ""
    if message:
        raise TrainingError(_what_fits(task, config, step, here, message))
    save()
    weights.raise_again()
    progress.close()
    return progress.rows


def _spread(task: Task, config: OptimConfig, here: World) -> Weights:
    """The weights to train, and the task's network spread over the processes."""
    if here.size == 1:
        return Weights(task.model, config.dtype)
    through: nn.Module | None = getattr(task, "through", None)
    if through is None:
        raise TrainingError(f"{type(task).__name__} trains in one process; start it without torchrun.")
    if config.parallel == "fsdp":
        task.through = sharded(through, config.dtype)  # type: ignore[attr-defined]
        return Weights(task.model, "float32")
    if config.parallel != "ddp":
        raise TrainingError(f"parallel is {config.parallel!r}; it must be ddp or fsdp.")
    weights = Weights(task.model, config.dtype)
    some_unused = getattr(task, "some_unused", False)
    task.through = replicated(through, some_unused=some_unused)  # type: ignore[attr-defined]
    return weights


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _what_fits(task: Task, config: OptimConfig, step: int, here: World, message: str) -> str:
    """Halve the batch until a step's forward and backward pass fit. Several processes do not try: they would wait
    for each other."""
    said = f"Out of memory at step {step + 1} with a batch of {config.batch}"
    losses_of = getattr(task, "losses_of", None)
    count = config.batch // 2
    while losses_of is not None and here.size == 1 and count >= 2:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            task.model.zero_grad(set_to_none=True)
            loss = losses_of(step, count)["loss"]
            if loss.requires_grad:
                loss.backward()
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        else:
            return f"{said}; the largest that fitted is {count}: set optim.batch or chunk to it ({message})."
        count //= 2
    return f"{said}; use a smaller one, chunks (cached embeddings), or more processes ({message})."


def _save(
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


def _resume(
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
