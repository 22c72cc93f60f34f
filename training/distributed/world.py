"""Know which of the processes that train together this one is, and join those that torchrun started."""

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
    """The position of this process among all that train together.

    rank: its number, from 0; process 0 writes files and messages. size: the number of processes, 1 without torchrun.
    """

    rank: int
    size: int

    def select_share(self, rows: Tensor) -> Tensor:
        """Return the rows of a joined batch that belong to this process.

        Raise TrainingError when the processes cannot share the rows equally.
        """
        if len(rows) % self.size:
            raise TrainingError(
                f"A batch of {len(rows)} cannot be shared equally by {self.size} processes; "
                f"use {len(rows) // self.size * self.size} or {-(-len(rows) // self.size) * self.size}."
            )
        count = len(rows) // self.size
        return rows[self.rank * count : (self.rank + 1) * count]


def current_world() -> World:
    """Return the position of this process; a size of 1 when no process group was started."""
    if not dist.is_available() or not dist.is_initialized():
        return World(0, 1)
    return World(dist.get_rank(), dist.get_world_size())


def device_of_process() -> torch.device:
    """Return the device on which this process computes: the GPU of its LOCAL_RANK, or the CPU without a GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def join_process_group() -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun started (RANK, WORLD_SIZE and LOCAL_RANK), and leave them at the end.

    Yields the position of this process and its device: its own GPU, with NCCL between the processes, or the CPU, with
    gloo. Without torchrun, or when a process group is there already, nothing is joined.
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
