"""Know how many floating-point operations a device can do in a second: what the share that a run uses (MFU) is of."""

from __future__ import annotations

import math
import time

import torch

# Dense bfloat16 operations a second, from NVIDIA's data sheets; the first name that the GPU's contains.
PEAKS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "A10G": 70e12}


def peak_operations(device: torch.device, dtype: str) -> float:
    """Operations a second that the device can do at most: from its data sheet, else as a large product measures."""
    if device.type == "cuda" and dtype == "bfloat16":
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAKS.items():
            if known in name:
                return peak
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.ones(side, side, device=device, dtype=getattr(torch, dtype))
    best = math.inf
    for _ in range(4):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
