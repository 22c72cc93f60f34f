"""Freed memory stays with the process for the next pass: seen in its resident size, in processes of their own."""

import subprocess
import sys

import pytest

from engine.models.malloc import keep_freed_memory

PROGRAM = """
import sys
from pathlib import Path
import torch
from engine.models.malloc import keep_freed_memory

def resident_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident_mib()
blocks = [torch.empty(20 * 2**20, dtype=torch.uint8).fill_(1) for _ in range(15)]
assert resident_mib() - before > 280
del blocks
print(resident_mib() - before)
"""


def kept_mib(how: str) -> int:
    """Of 300 MiB that were taken and freed."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_kept() -> None:
    if not keep_freed_memory():
        pytest.skip("this C library is not glibc")
    assert kept_mib("keep") > 200
    assert kept_mib("leave") < 100
