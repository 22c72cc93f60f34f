"""A test's work in two processes that talk by gloo, as under torchrun."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Work = Callable[[int, Path], Any]
"""Rank, folder -> what that process found; a function of a module, since the processes are spawned."""


def in_two_processes(work: Work, folder: Path) -> list[Any]:
    """What each of the two found, by rank. folder: theirs to write to."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    torch.multiprocessing.spawn(_in_one, (port, work, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _in_one(rank: int, port: int, work: Work, folder: Path) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
    }  # fmt: skip
    torch.set_num_threads(1)
    torch.save(work(rank, folder), folder / f"{rank}.pt")
