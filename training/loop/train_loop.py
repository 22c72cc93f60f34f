"""One flat training loop for every task: warm-up and cosine per step, bf16, checkpoints, exact resume.

Under torchrun every process runs it; the first one writes.

With `dtype="bfloat16"` the model computes in bfloat16 while the optimizer keeps and updates float32 master weights
(mixed precision, arXiv:1710.03740; bfloat16 needs no loss scaling).

A task gives a model and the losses of a step number. All randomness of a step (which samples, crops, dropout,
negatives) is drawn from (seed, step), so a run resumed from a checkpoint repeats the same losses without any
state of generators being kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from engine.errors import TrainingError
from engine.models.malloc import keep_freed_memory
from training.distributed.gathering import combine_flags
from training.distributed.world import World, current_world
from training.distributed.wrapping import clip_gradients, shard_with_fsdp, wrap_with_ddp
from training.loop.interrupts import StopNow, StopSignal
from training.loop.optimizer import OptimConfig, learning_rate, learning_rate_scales, make_optimizer
from training.loop.random_draws import seed_step
from training.loop.run_checkpoint import Checkpointer
from training.loop.run_dtype import resolve_config_dtypes
from training.loop.run_log import RunLog
from training.loop.trained_weights import TrainedWeights

ASKED_EVERY = 8
"""Steps after which several processes agree on stopping and saving: to ask, each waits for its GPU."""


class TrainingTask(Protocol):
    """What is trained. `losses` returns the total under "loss", and its parts for the log.

    A task may have more. `through`, the door to its network (`wrapping.Through`), lets several processes train it;
    `some_unused` says that its steps leave parameters out. `settings`: plain values that a resumed run must share.
    `losses_of(step, count)`, the losses of that many samples, lets an out-of-memory error say what fits. A task that
    runs its backward passes itself returns a loss without gradient.
    """

    @property
    def model(self) -> nn.Module: ...

    def losses(self, step: int) -> dict[str, Tensor]: ...


def train(
    task: TrainingTask, config: OptimConfig, folder: Path, *, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, float]]:
    """Train `task.model` in place and return the log, one row every `log_every` steps.

    folder: receives `log.jsonl` and `checkpoint.pt` (weights, optimizer, step); when a checkpoint is there the run goes
    on from it. say: called with a progress line. Raises TrainingError when the checkpoint was made with other settings
    (naming them), a loss is not a number (naming the step; the last checkpoint stays good), or memory runs out (naming
    the largest batch that fitted). Ctrl-C ends the step and saves a checkpoint before KeyboardInterrupt is raised.
    """
    config = resolve_config_dtypes(config, next(task.model.parameters()).device)
    world = current_world()
    weights = _spread(task, config, world)
    scales = learning_rate_scales(weights.names, config.layer_decay)
    optimizer = make_optimizer(weights.masters, config, scales)
    checkpointer = Checkpointer(folder, weights, optimizer, config, getattr(task, "settings", {}))
    first = step = checkpointer.resume()
    device = weights.masters[0].device
    if device.type == "cpu":
        keep_freed_memory()
    log = RunLog(folder, config, first, say, device)
    out_of_memory = ""
    with StopSignal() as stop:
        try:
            while step < config.steps:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, config) * group["scale"]
                # --- a single training step ---------------------------------------------------------
                seed_step(config.seed, step, world.rank)
                optimizer.zero_grad(set_to_none=True)
                with log.counted(step):
                    losses = task.losses(step)
                    if losses["loss"].requires_grad:  # else the task has run its backward passes itself
                        losses["loss"].backward()
                weights.move_gradients_to_masters()
                if config.clip:
                    clip_gradients(weights.masters, config.clip)
                optimizer.step()
                weights.copy_masters_to_model()
                # ------------------------------------------------------------------------------------
                step += 1
                log.add(step, losses)
                if step % config.log_every == 0 or step == config.steps:
                    log.write_row(step)
                stopping, saving = _asked(stop, checkpointer, step, world, device)
                if stopping:
                    raise KeyboardInterrupt
                if saving:
                    log.check(step)
                    checkpointer.save(step)
        except StopNow:
            raise
        except KeyboardInterrupt:
            log.check(step)
            checkpointer.save(step)
            raise
        except RuntimeError as error:  # its traceback holds the step's tensors until this block is left
            out_of_memory = _memory_message(error)
    if out_of_memory:
        raise TrainingError(_explain_out_of_memory(task, config, step, world, out_of_memory))
    checkpointer.save(step)
    weights.restore_float32()
    log.close()
    return log.rows


def _spread(task: TrainingTask, config: OptimConfig, world: World) -> TrainedWeights:
    """The weights to train, and the task's network spread over the processes."""
    if world.size == 1:
        return TrainedWeights(task.model, config.dtype)
    wrapper: nn.Module | None = getattr(task, "wrapper", None)
    if wrapper is None:
        raise TrainingError(f"{type(task).__name__} trains in one process; start it without torchrun.")
    if config.parallel == "fsdp":
        task.wrapper = shard_with_fsdp(wrapper, config.dtype)  # type: ignore[attr-defined]
        return TrainedWeights(task.model, "float32")
    if config.parallel != "ddp":
        raise TrainingError(f"parallel is {config.parallel!r}; it must be ddp or fsdp.")
    weights = TrainedWeights(task.model, config.dtype)
    leaves_parameters_out = getattr(task, "leaves_parameters_out", False)
    task.wrapper = wrap_with_ddp(wrapper, leaves_parameters_out=leaves_parameters_out)  # type: ignore[attr-defined]
    return weights


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _asked(
    stop: StopSignal, checkpointer: Checkpointer, step: int, world: World, device: torch.device
) -> tuple[bool, bool]:
    """Return whether the run is to stop after this step, and whether it is to save; all processes agree on both."""
    if world.size > 1 and step % ASKED_EVERY:
        return False, False
    stopping, saving = combine_flags((stop.asked, world.rank == 0 and checkpointer.is_late), device)
    return stopping, saving


def _memory_message(error: RuntimeError) -> str:
    """Return the first line of an out-of-memory error. Raise any other error again."""
    if not _is_out_of_memory(error):
        raise error
    return str(error).splitlines()[0]


def _explain_out_of_memory(
    task: TrainingTask, config: OptimConfig, step: int, world: World, message: str
) -> str:
    """Return what ran out of memory, and the largest batch that fits: it is halved until a step's passes do.

    Several processes do not try, for they would wait for each other. message: the first line of the error.
    """
    happened = f"Out of memory at step {step + 1} with a batch of {config.batch}"
    losses_of = getattr(task, "losses_of", None)
    count = config.batch // 2
    while losses_of is not None and world.size == 1 and count >= 2:
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
            return (
                f"{happened}; the largest that fitted is {count}: set optim.batch or chunk to it ({message})."
            )
        count //= 2
    return f"{happened}; use a smaller one, chunks (cached embeddings), or more processes ({message})."
