"""How the C library treats memory that a pass has freed."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
LARGEST_BLOCK = 2**25  # the most that mallopt takes: larger blocks are always the system's
KEPT = 2**29


def keep_freed_memory() -> bool:
    """Keep up to 512 MiB of freed blocks for the next pass; return whether the C library does so (glibc).

    It changes the whole process, so nothing in engine/ calls it: the command line, the page and training do. By
    default the C library hands every large block back, and each pass on a CPU has its memory cleared and mapped anew,
    page by page: a fifth of the time of encoding photos on the machine where it was measured.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    wanted = ((M_MMAP_THRESHOLD, LARGEST_BLOCK), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, LARGEST_BLOCK))
    return all([mallopt(name, value) == 1 for name, value in wanted])
