"""Tell the C library to keep memory that a pass of a model has freed, so that the next pass is faster."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # The names and values are those of malloc.h.
LARGEST_BLOCK = 2**25  # In bytes; mallopt takes no more. Larger blocks always go back to the system.
KEPT_BYTES = 2**29


def keep_freed_memory() -> bool:
    """Keep up to 512 MiB of freed blocks for the next pass, and return whether the C library (glibc) does so.

    By default the C library hands every large block back to the system, and each pass on a CPU has its memory mapped
    and cleared again, page by page; that took a fifth of the time of encoding photos where it was measured
    (tests/bench/allocator_speed.py). The whole process is changed, so nothing in engine/ calls this function: the
    command line, the page and training do.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # Another C library has no mallopt.
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST_BLOCK), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_TOP_PAD, LARGEST_BLOCK))
    return all([mallopt(name, value) == 1 for name, value in settings])
