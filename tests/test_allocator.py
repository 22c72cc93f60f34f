"""Freed memory is used again: counted in page faults, in a process of its own for each of the two ways."""

import subprocess
import sys

import pytest

from engine.blip2.allocator import keep_freed_memory

PROGRAM = """
import resource, sys
import torch
from engine.blip2.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def turn():
    blocks = [torch.empty(24 * 2**20, dtype=torch.uint8).fill_(1) for _ in range(3)]
turn()
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(80):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_kept() -> None:
    if not keep_freed_memory():
        pytest.skip("this C library is not glibc")
    assert 0 <= 2 * faults("keep") < faults("leave")
