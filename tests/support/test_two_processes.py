"""One pair of processes runs several functions; a failure in either is reported, and a new pair is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from two_processes import run_in_two_processes

from training.distributed.world import join_process_group

pytestmark = pytest.mark.xdist_group("processes")


def sum_ranks(rank: int, folder: Path) -> tuple[int, float]:
    """Return the process's id and the sum of rank + 1 over both processes."""
    with join_process_group():
        total = torch.tensor(float(rank + 1))
        dist.all_reduce(total)
    return os.getpid(), float(total)


def fail(rank: int, folder: Path) -> None:
    """End the first process without a word and raise AssertionError in the second."""
    if rank == 0:
        os._exit(3)
    raise AssertionError("the second is wrong")


def test_one_pair_of_processes_runs_two_functions(tmp_path: Path) -> None:
    first, second = (run_in_two_processes(sum_ranks, tmp_path) for _ in range(2))
    assert first == second and [total for _, total in first] == [3.0, 3.0]
    assert len({os.getpid(), *(pid for pid, _ in first)}) == 3


def test_failures_of_both_processes_are_reported_and_a_new_pair_works(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as raised:
        run_in_two_processes(fail, tmp_path)
    assert "process 0: it ended by itself" in str(raised.value)
    assert "AssertionError: the second is wrong" in str(raised.value)
    assert [total for _, total in run_in_two_processes(sum_ranks, tmp_path)] == [3.0, 3.0]
