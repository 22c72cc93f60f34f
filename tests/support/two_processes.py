"""Run a test's work in two processes that talk by gloo, as under torchrun; one pair of processes serves all tests."""

from __future__ import annotations

import atexit
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

Work = Callable[[int, Path], Any]
"""Rank, folder -> what that process found; a function of a module, since the processes are spawned."""
SECONDS_AFTER_A_FAILURE = 5
"""Seconds in which the other process can end too: it may wait for the one that failed forever."""


class ProcessPair:
    """Two processes that wait for work. Starting them takes as long as importing PyTorch, twice."""

    def __init__(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.connections: list[Connection] = []
        self.processes = []
        for rank in range(2):
            here, there = context.Pipe()
            self.processes.append(context.Process(target=_serve, args=(rank, there)))
            self.processes[-1].start()
            there.close()  # so that the process that dies closes the last end, which ends a wait
            self.connections.append(here)

    def run(self, work: Work, folder: Path) -> None:
        """Let both do the work and wait for them. Raises RuntimeError with the tracebacks of those that fail."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for connection in self.connections:
            connection.send((port, work, folder))
        waiting, problems = list(self.connections), []
        while waiting and (ready := wait(waiting, SECONDS_AFTER_A_FAILURE if problems else None)):
            for connection in [connection for connection in waiting if connection in ready]:
                waiting.remove(connection)
                try:
                    problem = connection.recv()
                except EOFError:
                    problem = "it ended by itself"
                if problem is not None:
                    problems.append(f"process {self.connections.index(connection)}: {problem}")
        if problems:
            raise RuntimeError("\n".join(problems))

    def close(self) -> None:
        """End both, whatever they do."""
        for process in self.processes:
            process.kill()
            process.join()


_pair: ProcessPair | None = None


def run_in_two_processes(work: Work, folder: Path) -> list[Any]:
    """Return what each of the two found, by rank. folder: theirs to write to."""
    global _pair
    if _pair is None:
        _pair = ProcessPair()
        atexit.register(_pair.close)
    try:
        _pair.run(work, folder)
    except RuntimeError:
        _pair.close()
        _pair = None
        raise
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _serve(rank: int, connection: Connection) -> None:
    """Do one work after another until the test run ends."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    while True:
        try:
            port, work, folder = connection.recv()
        except EOFError:
            return
        os.environ["MASTER_PORT"] = str(port)
        try:
            torch.save(work(rank, folder), folder / f"{rank}.pt")
            connection.send(None)
        except BaseException:  # a failed assertion and pytest's own errors too
            connection.send(traceback.format_exc())
