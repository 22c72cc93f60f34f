"""Several processes train one model as one process would with their joined batch.

Each process holds B of the N pairs of a batch. What every pair must see of all others is small and is gathered whole:
embeddings (with gradient) and token ids. A negative photo may lie with another process, and its patches are
large, so only the drawn ones travel, once each, and as patches: the keys and values that the Q-Former makes of them
are 6.5 times their size for ViT-g (6 layers x 2 x 768 against 1408 numbers a patch).

The processes' losses are means over B pairs each, and DDP and FSDP average gradients, so the sum of gradients that a
gathered tensor brings back gives the gradient of the mean over N pairs.

Shapes: B rows of this process, N rows of all, F rows fetched from others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from engine.errors import TrainingError


@dataclass(frozen=True)
class World:
    """This process among all that train together. rank: 0 writes; size: 1 = alone."""

    rank: int
    size: int

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of a joined batch. Raises TrainingError when they cannot be shared equally."""
        if len(rows) % self.size:
            raise TrainingError(
                f"A batch of {len(rows)} cannot be shared equally by {self.size} processes; "
                f"use {len(rows) // self.size * self.size} or {-(-len(rows) // self.size) * self.size}."
            )
        count = len(rows) // self.size
        return rows[self.rank * count : (self.rank + 1) * count]


def world() -> World:
    """Who this process is; alone when no process group was started."""
    if not dist.is_available() or not dist.is_initialized():
        return World(0, 1)
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined() -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun started (its RANK, WORLD_SIZE and LOCAL_RANK) and leave them at the end.

    Yields this process's place and device: its own GPU with NCCL, or the CPU with gloo. Alone, nothing is joined.
    """
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if has_gpu else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield world(), device
        return
    if has_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield world(), device
    finally:
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather_constants(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return world().share(grad)


def gather(rows: Tensor) -> Tensor:
    """Rows (B, ...) of all processes -> (N, ...), with gradient: what any process asks of a row reaches its owner."""
    return rows if world().size == 1 else _Gather.apply(rows)


def gather_constants(rows: Tensor) -> Tensor:
    """The same without gradient, for numbers and masks too. B and the other sizes must be equal everywhere."""
    size = world().size
    if size == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def gather_texts(ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and masks of all processes, padded to the longest text of all."""
    if world().size == 1:
        return ids_BT, mask_BT
    longest = torch.tensor(ids_BT.shape[1], device=ids_BT.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    more = int(longest) - ids_BT.shape[1]
    ids_BT = torch.nn.functional.pad(ids_BT, (0, more))
    mask = torch.nn.functional.pad(mask_BT.to(torch.uint8), (0, more))
    return gather_constants(ids_BT), gather_constants(mask).bool()


class _Exchange(torch.autograd.Function):
    """Rows to other processes; on the way back, their gradients to the owners."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        ctx.sent, ctx.received = sent, received
        return _all_to_all(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _all_to_all(grad, ctx.received, ctx.sent), None, None


def _all_to_all(rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    got = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(got, rows.contiguous(), list(received), list(sent))
    return got


def fetch_rows(rows: Tensor, wanted_B: Tensor) -> tuple[Tensor, Tensor]:
    """Bring here the rows of other processes that are wanted, with gradient.

    rows: (B, ...) of this process. wanted_B: numbers among all N rows, the same count on every process. Returns the
    fetched rows (F, ...), each once, and for every wanted number its place in [rows; fetched] (B + F rows).
    """
    here = world()
    count = len(rows)
    if here.size == 1:
        return rows[:0], wanted_B
    wants = gather_constants(wanted_B).view(here.size, -1).cpu()
    needs = [[_of(wants[asker], owner, count) for owner in range(here.size)] for asker in range(here.size)]
    empty = wants.new_empty(0)
    for process in range(here.size):
        needs[process][process] = empty
    outgoing = [needs[asker][here.rank] for asker in range(here.size)]
    incoming = needs[here.rank]
    sent = torch.cat(outgoing).to(rows.device) - here.rank * count
    fetched = _Exchange.apply(rows[sent], [len(r) for r in outgoing], [len(r) for r in incoming])
    place = torch.full((here.size * count,), -1)
    place[here.rank * count : (here.rank + 1) * count] = torch.arange(count)
    place[torch.cat(incoming)] = count + torch.arange(len(fetched))
    return fetched, place.to(wanted_B.device)[wanted_B]


def _of(numbers: Tensor, owner: int, count: int) -> Tensor:
    """Those that lie with `owner`, each once, in order."""
    return numbers[(numbers >= owner * count) & (numbers < (owner + 1) * count)].unique()


def total(value: Tensor) -> Tensor:
    """The sum of a value over all processes, without gradient."""
    if world().size > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def mean_weight(count: Tensor) -> Tensor | float:
    """What this process's mean over `count` things weighs in the mean over processes, so that it is that over all."""
    return 1.0 if world().size == 1 else count * world().size / total(count)


def any_process(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """For each flag whether any process has raised it; all get the same answer."""
    if world().size == 1:
        return list(flags)
    raised = torch.tensor([int(flag) for flag in flags], device=device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]


class Through(nn.Module):
    """The one door to a network in training: `through(work, ...)` is `work(network, ...)`.

    DDP and FSDP act on the forward of the module that they wrap, and a Q-Former has many entries; so all of a step
    happens inside this forward.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, work: Callable[..., Any], *args: Any) -> Any:
        return work(self.network, *args)


def replicated(through: nn.Module, *, some_unused: bool = False) -> nn.Module:
    """DDP: each process holds the whole network; gradients are averaged while the backward pass still runs.

    some_unused: whether a step leaves parameters out (the heads, while ITC trains alone); they keep no gradient.
    """
    devices = [torch.cuda.current_device()] if next(through.parameters()).is_cuda else None
    return nn.parallel.DistributedDataParallel(
        through, device_ids=devices, forward_sync_buffers=False, find_unused_parameters=some_unused
    )


def sharded(through: nn.Module, dtype: str) -> nn.Module:
    """FSDP2: each process keeps a part of every weight, of its gradient and of the optimizer's state in float32.

    The encoder's blocks are gathered one after the other; the rest, which a step enters many times, is gathered once a
    step. A frozen language model stays whole in each process. dtype: what is gathered is cast to; gradients are summed
    in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # seconds to import

    lowered = torch.bfloat16 if dtype == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=lowered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    vision = getattr(through.network, "vision", None)
    for block in getattr(getattr(vision, "backbone", None), "blocks", ()):
        fully_shard(block, mp_policy=policy)
    scalars = {
        p for p in through.parameters() if p.ndim == 0
    }  # FSDP takes none: each process keeps the temperature
    for scalar in scalars:
        scalar.register_post_accumulate_grad_hook(_average_gradient)
    language = getattr(
        through.network, "language", None
    )  # frozen; its word embeddings are read outside of it
    kept = set() if language is None else set(language.parameters())
    fully_shard(through, mp_policy=policy, ignored_params=scalars | kept)
    return through


def _average_gradient(parameter: Tensor) -> None:
    if parameter.grad is not None:  # what was averaged before stays as it is
        dist.all_reduce(parameter.grad)
        parameter.grad /= world().size


def clip_gradients(weights: Sequence[Tensor], largest: float) -> None:
    """Scale all gradients so that their joint norm is at most `largest`; sharded and whole weights may be mixed."""
    kinds = [[w for w in weights if is_sharded(w) is sharded_] for sharded_ in (True, False)]
    norms = []
    for some in kinds:
        grads = [w.grad for w in some if w.grad is not None]
        if grads:
            norm = nn.utils.get_total_norm(grads)
            norms.append(full_tensors(norm))
    joint = torch.stack(norms).norm() if len(norms) > 1 else norms[0]
    for some in kinds:
        nn.utils.clip_grads_with_norm_(some, largest, joint)


def full_tensors(tree: Any) -> Any:
    """The same nest of dicts and lists with every sharded tensor made whole; all processes take part."""
    return tree_map(lambda one: one.full_tensor() if is_sharded(one) else one, tree)


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor laid out as another one is."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded_one: Any = like
    return distribute_tensor(value.to(like.device), sharded_one.device_mesh, sharded_one.placements)


def is_sharded(value: Any) -> bool:
    """Whether it is a DTensor; asked without importing them, which takes seconds."""
    return hasattr(value, "full_tensor")


BUCKET = 2**24
"""Numbers that are averaged in one go: 64 MB of float32."""


def average_gradients(through: nn.Module) -> None:
    """Average over processes what several backward passes have added up under DDP's `no_sync`, in float32.

    Nothing to do alone, or under FSDP, which averages after every backward pass. All processes must have gradients of
    the same parameters.
    """
    if world().size == 1 or not isinstance(through, nn.parallel.DistributedDataParallel):
        return
    bucket: list[Tensor] = []
    grads = [p.grad for p in through.parameters() if p.grad is not None]
    for number, grad in enumerate(grads):
        bucket.append(grad)
        if number == len(grads) - 1 or sum(one.numel() for one in bucket) >= BUCKET:
            flat = torch.cat([one.float().flatten() for one in bucket])
            dist.all_reduce(flat)
            for one, mean in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                one.copy_(mean.view_as(one) / world().size)
            bucket = []
