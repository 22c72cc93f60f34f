"""Find the peak of a device in floating-point operations a second, of which a run uses a share (MFU)."""

from __future__ import annotations

import math
import time

import torch

# The first entry counts whose name is part of the GPU's name.
PEAKS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "A10G": 70e12}
"""Dense bfloat16 operations a second by the name of a GPU, from NVIDIA's data sheets."""


def peak_operations(device: torch.device, dtype: str) -> float:
    """Return the most operations a second that a device can do in a dtype ("bfloat16" or "float32").

    The peak of a known GPU in bfloat16 is that of its data sheet; other peaks are measured with a large matrix product.
    """
    if device.type == "cuda" and dtype == "bfloat16":
        name = torch.cuda.get_device_name(device)
        for part_of_name, peak in PEAKS.items():
            if part_of_name in name:
                return peak
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.ones(side, side, device=device, dtype=getattr(torch, dtype))
    best = math.inf
    for _ in range(4):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
