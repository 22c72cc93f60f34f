"""The training loop of every task, flat: schedule, bfloat16, checkpoints, and runs that go on where they stopped.

Under torchrun every process runs it, and process 0 writes.

With `dtype="bfloat16"` the model computes in bfloat16 while the optimizer keeps and updates float32 master weights
(mixed precision, arXiv:1710.03740; bfloat16 needs no loss scaling).

A task gives a model and the losses of a step. All random numbers of a step (samples, crops, dropout, negatives) depend
on (seed, step) alone, so that a run which goes on from a checkpoint repeats the losses of a run that was never stopped,
and no state of a generator has to be saved.
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

STEPS_BETWEEN_AGREEMENTS = 8
"""Steps after which several processes agree on stopping and saving, for which each must wait for its GPU."""


class TrainingTask(Protocol):
    """A model and the losses of its training steps.

    `losses` returns the total loss under "loss", and its parts for the log. A task that runs its backward passes itself
    returns a loss without gradient. A task may have more attributes:
    wrapper: its network in a `NetworkWrapper`, so that several processes can train it.
    leaves_parameters_out: whether its steps do not use some of the parameters.
    settings: plain values that must be unchanged when a stopped run goes on.
    losses_of(step, count): the losses of `count` samples, so that an out-of-memory error can say how many fit.
    """

    @property
    def model(self) -> nn.Module: ...

    def losses(self, step: int) -> dict[str, Tensor]: ...


def train(
    task: TrainingTask, config: OptimConfig, folder: Path, *, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, float]]:
    """Train `task.model` in place and return the log, a row for every `log_every` steps.

    folder: receives `log.jsonl` and `checkpoint.pt` (weights, optimizer, step); when a checkpoint is there the run goes
    on from it. say: is called with progress lines. Ctrl-C ends the step and saves a checkpoint before KeyboardInterrupt
    is raised.
    Raise TrainingError when the checkpoint was made with other settings (naming them), a loss is not a number (naming
    the step; the last checkpoint stays good), or memory runs out (naming the largest batch that fitted).
    """
    config = resolve_config_dtypes(config, next(task.model.parameters()).device)
    world = current_world()
    weights = _spread_network(task, config, world)
    scales = learning_rate_scales(weights.names, config.layer_decay)
    optimizer = make_optimizer(weights.masters, config, scales)
    checkpointer = Checkpointer(folder, weights, optimizer, config, getattr(task, "settings", {}))
    first_step = step = checkpointer.resume()
    device = weights.masters[0].device
    if device.type == "cpu":
        keep_freed_memory()
    log = RunLog(folder, config, first_step, say, device)
    out_of_memory = ""
    with StopSignal() as stop:
        try:
            while step < config.steps:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, config) * group["scale"]
                # --- a single training step ---------------------------------------------------------
                seed_step(config.seed, step, world.rank)
                optimizer.zero_grad(set_to_none=True)
                with log.count_operations(step):
                    losses = task.losses(step)
                    # Without gradient the task has run its backward passes itself.
                    if losses["loss"].requires_grad:
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
                stopping, saving = _agree_on_stopping(stop, checkpointer, step, world, device)
                if stopping:
                    raise KeyboardInterrupt
                if saving:
                    log.check_losses(step)
                    checkpointer.save(step)
        except StopNow:
            raise
        except KeyboardInterrupt:
            log.check_losses(step)
            checkpointer.save(step)
            raise
        except RuntimeError as error:
            # The traceback holds the step's tensors until this block is left.
            out_of_memory = _out_of_memory_message(error)
    if out_of_memory:
        raise TrainingError(_explain_out_of_memory(task, config, step, world, out_of_memory))
    checkpointer.save(step)
    weights.restore_float32()
    log.close()
    return log.rows


def _spread_network(task: TrainingTask, config: OptimConfig, world: World) -> TrainedWeights:
    """Return the weights to train, after the task's network was spread over the processes.

    Raise TrainingError for a task that only a single process can train, and for an unknown way to share the work.
    """
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


def _agree_on_stopping(
    stop: StopSignal, checkpointer: Checkpointer, step: int, world: World, device: torch.device
) -> tuple[bool, bool]:
    """Return whether the run is to stop after this step, and whether it is to save; all processes agree on both."""
    if world.size > 1 and step % STEPS_BETWEEN_AGREEMENTS:
        return False, False
    stopping, saving = combine_flags((stop.is_requested, world.rank == 0 and checkpointer.is_due), device)
    return stopping, saving


def _out_of_memory_message(error: RuntimeError) -> str:
    """Return the first line of an out-of-memory error. Raise any other error again."""
    if not _is_out_of_memory(error):
        raise error
    return str(error).splitlines()[0]


def _explain_out_of_memory(
    task: TrainingTask, config: OptimConfig, step: int, world: World, message: str
) -> str:
    """Return a text on memory that ran out, with the largest batch that fits: halved until a step's passes succeed.

    Several processes do not try batches, since they would wait for each other. message: first line of the error.
    """
    problem = f"Out of memory at step {step + 1} with a batch of {config.batch}"
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
                f"{problem}; the largest that fitted is {count}: set optim.batch or chunk to it ({message})."
            )
        count //= 2
    return f"{problem}; use a smaller batch, chunks (cached embeddings), or more processes ({message})."
