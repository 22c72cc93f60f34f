"""Freed memory stays with the process for the next pass: seen in its resident size, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.models.malloc import keep_freed_memory

PROGRAM = """
from pathlib import Path
import torch
from engine.models.malloc import keep_freed_memory

def resident_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

def kept_mib():  # of 300 MiB that are taken and freed
    before = resident_mib()
    blocks = [torch.empty(20 * 2**20, dtype=torch.uint8).fill_(1) for _ in range(15)]
    assert resident_mib() - before > 280
    del blocks
    return resident_mib() - before

left = kept_mib()
assert keep_freed_memory()
print(left, kept_mib())
"""


def test_freed_memory_is_kept() -> None:
    if not keep_freed_memory():
        pytest.skip("this C library is not glibc")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    without, with_it = map(int, done.stdout.split())
    assert with_it > 200
    assert without < 100
