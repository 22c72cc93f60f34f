"""Exchange rows between processes that train a model as a single process would with their joined batch.

Each process holds B of the N pairs of a batch. What every pair must see of all others is small and is gathered whole:
embeddings (with gradient) and token ids. A negative photo may belong to another process, and its patches are large.
So only the photos that were drawn travel, once each, and as patches: the keys and values that the Q-Former computes
from patches are 6.5 times their size for ViT-g (6 layers x 2 x 768 against 1408 numbers a patch).

The loss of a process is a mean over its B pairs, and DDP and FSDP average gradients over processes. So the sum of the
gradients that all processes give to a gathered tensor is the gradient of the mean over N pairs.

Shapes: B rows of this process, N rows of all processes, F rows fetched from others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.distributed.world import current_world


class _Gather(torch.autograd.Function):
    """Gather rows from all processes; the backward pass sums the gradients of a row and returns them to its owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather_constants(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return current_world().select_share(grad)


def gather(rows: Tensor) -> Tensor:
    """Gather the rows (B, ...) of all processes -> (N, ...), with gradient.

    The gradient of a row is the sum over all processes, and reaches the process that the row belongs to.
    """
    return rows if current_world().size == 1 else _Gather.apply(rows)


def gather_constants(rows: Tensor) -> Tensor:
    """Gather the rows (B, ...) of all processes -> (N, ...), without gradient and of any dtype.

    B and the other sizes must be equal on all processes.
    """
    size = current_world().size
    if size == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def gather_texts(ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Gather token ids and masks of all processes -> (N, T) each, padded to the longest text of all."""
    if current_world().size == 1:
        return ids_BT, mask_BT
    longest = torch.tensor(ids_BT.shape[1], device=ids_BT.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    num_padding = int(longest) - ids_BT.shape[1]
    ids_BT = torch.nn.functional.pad(ids_BT, (0, num_padding))
    mask = torch.nn.functional.pad(mask_BT.to(torch.uint8), (0, num_padding))
    return gather_constants(ids_BT), gather_constants(mask).bool()


class _Exchange(torch.autograd.Function):
    """Send rows to other processes and receive theirs; the backward pass returns the gradients to the owners."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent_counts: Sequence[int], received_counts: Sequence[int]) -> Tensor:
        ctx.sent_counts, ctx.received_counts = sent_counts, received_counts
        return _all_to_all(rows, sent_counts, received_counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _all_to_all(grad, ctx.received_counts, ctx.sent_counts), None, None


def _all_to_all(rows: Tensor, sent_counts: Sequence[int], received_counts: Sequence[int]) -> Tensor:
    """Send the first sent_counts[0] rows to process 0, the next to process 1, ...; return the rows that arrive here."""
    received = rows.new_empty(sum(received_counts), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), list(received_counts), list(sent_counts))
    return received


def fetch_rows(rows: Tensor, numbers_B: Tensor) -> tuple[Tensor, Tensor]:
    """Fetch rows that belong to other processes, with gradient.

    rows: (B, ...) of this process. numbers: the rows that this process needs, as numbers among all N rows; equally many
    on every process. Returns the fetched rows (F, ...), each once, and for each number its position in [rows; fetched],
    which has B + F rows.
    """
    world = current_world()
    count = len(rows)
    if world.size == 1:
        return rows[:0], numbers_B
    numbers_by_asker = gather_constants(numbers_B).view(world.size, -1).cpu()
    needs = [
        [_select_owned_by(owner, numbers, count) for owner in range(world.size)]
        for numbers in numbers_by_asker
    ]
    for process in range(world.size):
        # A process does not send rows to itself.
        needs[process][process] = numbers_by_asker.new_empty(0)
    outgoing = [needs[asker][world.rank] for asker in range(world.size)]
    incoming = needs[world.rank]
    sent = torch.cat(outgoing).to(rows.device) - world.rank * count
    fetched = _Exchange.apply(
        rows[sent], [len(numbers) for numbers in outgoing], [len(numbers) for numbers in incoming]
    )
    positions = torch.full((world.size * count,), -1)
    positions[world.rank * count : (world.rank + 1) * count] = torch.arange(count)
    positions[torch.cat(incoming)] = count + torch.arange(len(fetched))
    return fetched, positions.to(numbers_B.device)[numbers_B]


def _select_owned_by(owner: int, numbers: Tensor, count: int) -> Tensor:
    """Return the row numbers that belong to process `owner`, sorted and each once. count: rows of a process."""
    return numbers[(numbers >= owner * count) & (numbers < (owner + 1) * count)].unique()


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a value over all processes, without gradient."""
    if current_world().size > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def mean_weight(count: Tensor) -> Tensor | float:
    """Return the weight of this process's mean over `count` items in the mean over processes.

    The mean over processes of weight times mean is the mean over the items of all processes.
    """
    return 1.0 if current_world().size == 1 else count * current_world().size / sum_over_processes(count)


def combine_flags(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Return for each flag whether any process has raised it; all processes get equal answers."""
    if current_world().size == 1:
        return list(flags)
    raised = torch.tensor([int(flag) for flag in flags], device=device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]
