"""Count the processors that this process may use."""

from __future__ import annotations

import os


def count_processors() -> int:
    """Return how many processors this process may use, at least 1; a container may allow fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # Only Linux has it.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
