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

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.distributed.world import current_world


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather_constants(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return current_world().select_share(grad)


def gather(rows: Tensor) -> Tensor:
    """Rows (B, ...) of all processes -> (N, ...), with gradient: what any process asks of a row reaches its owner."""
    return rows if current_world().size == 1 else _Gather.apply(rows)


def gather_constants(rows: Tensor) -> Tensor:
    """The same without gradient, for numbers and masks too. B and the other sizes must be equal everywhere."""
    size = current_world().size
    if size == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def gather_texts(ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and masks of all processes, padded to the longest text of all."""
    if current_world().size == 1:
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
    world = current_world()
    count = len(rows)
    if world.size == 1:
        return rows[:0], wanted_B
    wants = gather_constants(wanted_B).view(world.size, -1).cpu()
    needs = [[_of(wants[asker], owner, count) for owner in range(world.size)] for asker in range(world.size)]
    empty = wants.new_empty(0)
    for process in range(world.size):
        needs[process][process] = empty
    outgoing = [needs[asker][world.rank] for asker in range(world.size)]
    incoming = needs[world.rank]
    sent = torch.cat(outgoing).to(rows.device) - world.rank * count
    fetched = _Exchange.apply(rows[sent], [len(r) for r in outgoing], [len(r) for r in incoming])
    place = torch.full((world.size * count,), -1)
    place[world.rank * count : (world.rank + 1) * count] = torch.arange(count)
    place[torch.cat(incoming)] = count + torch.arange(len(fetched))
    return fetched, place.to(wanted_B.device)[wanted_B]


def _of(numbers: Tensor, owner: int, count: int) -> Tensor:
    """Those that lie with `owner`, each once, in order."""
    return numbers[(numbers >= owner * count) & (numbers < (owner + 1) * count)].unique()


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a value over all processes, without gradient."""
    if current_world().size > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def mean_weight(count: Tensor) -> Tensor | float:
    """What this process's mean over `count` things weighs in the mean over processes, so that it is that over all."""
    return 1.0 if current_world().size == 1 else count * current_world().size / sum_over_processes(count)


def combine_flags(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """For each flag whether any process has raised it; all get the same answer."""
    if current_world().size == 1:
        return list(flags)
    raised = torch.tensor([int(flag) for flag in flags], device=device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]
