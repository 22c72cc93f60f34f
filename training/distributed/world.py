"""Know this process among all that train together, and join the processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from engine.errors import TrainingError


@dataclass(frozen=True)
class World:
    """This process among all that train together. rank: 0 writes; size: 1 = alone."""

    rank: int
    size: int

    def select_share(self, rows: Tensor) -> Tensor:
        """This process's rows of a joined batch. Raises TrainingError when they cannot be shared equally."""
        if len(rows) % self.size:
            raise TrainingError(
                f"A batch of {len(rows)} cannot be shared equally by {self.size} processes; "
                f"use {len(rows) // self.size * self.size} or {-(-len(rows) // self.size) * self.size}."
            )
        count = len(rows) // self.size
        return rows[self.rank * count : (self.rank + 1) * count]


def current_world() -> World:
    """Who this process is; alone when no process group was started."""
    if not dist.is_available() or not dist.is_initialized():
        return World(0, 1)
    return World(dist.get_rank(), dist.get_world_size())


def device_of_process() -> torch.device:
    """Return where this process computes: the GPU of its LOCAL_RANK, or the CPU where there is no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def join_process_group() -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun started (its RANK, WORLD_SIZE and LOCAL_RANK) and leave them at the end.

    Yields this process's place and device: its own GPU with NCCL, or the CPU with gloo. Alone, nothing is joined.
    """
    device = device_of_process()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield current_world(), device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield current_world(), device
    finally:
        dist.destroy_process_group()
