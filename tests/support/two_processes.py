"""Run functions of tests in two processes that talk by gloo, as under torchrun; one pair of processes serves all."""

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
"""A function of a module (the processes are spawned) that takes its rank and a folder, and returns its result."""
SECONDS_AFTER_A_FAILURE = 5
"""Seconds that the second process may go on after the first has failed, for which it may wait forever."""


class ProcessPair:
    """Two processes that wait for functions to run. To start them takes as long as importing PyTorch twice."""

    def __init__(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.connections: list[Connection] = []
        self.processes = []
        for rank in range(2):
            parent_end, child_end = context.Pipe()
            self.processes.append(context.Process(target=_serve, args=(rank, child_end)))
            self.processes[-1].start()
            # The child then holds the only copy of its end: when it dies, waiting for it ends.
            child_end.close()
            self.connections.append(parent_end)

    def run(self, work: Work, folder: Path) -> None:
        """Run a function in both processes and wait for them.

        Raises RuntimeError with the traceback of each process that fails.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for connection in self.connections:
            connection.send((port, work, folder))
        working, problems = list(self.connections), []
        while working and (ready := wait(working, SECONDS_AFTER_A_FAILURE if problems else None)):
            for connection in [connection for connection in working if connection in ready]:
                working.remove(connection)
                try:
                    problem = connection.recv()
                except EOFError:
                    problem = "it ended by itself"
                if problem is not None:
                    problems.append(f"process {self.connections.index(connection)}: {problem}")
        if problems:
            raise RuntimeError("\n".join(problems))

    def close(self) -> None:
        """Kill both processes, whatever they do."""
        for process in self.processes:
            process.kill()
            process.join()


_pair: ProcessPair | None = None


def run_in_two_processes(work: Work, folder: Path) -> list[Any]:
    """Run a function in two processes; return their results by rank. folder: where they may write."""
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
    """Run one function after another until the test run ends."""
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
        except BaseException:  # pytest's errors are no subclasses of Exception.
            connection.send(traceback.format_exc())
