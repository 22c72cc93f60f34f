"""Choose the device and the dtype that a model runs with, and name dtypes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def choose_device(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Resolve "auto" to the device and dtype of this machine.

    device: "auto" (a GPU where there is one) or a name that torch.device takes. dtype: see `resolve_dtype`. Raises
    ValueError for an unknown dtype, RuntimeError for an unknown device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device), resolve_dtype(dtype, device)


def resolve_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """Return the dtype of a name in DTYPES; "auto" stands for the fast one of the device (`choose_fast_dtype`).

    Raises ValueError for another name.
    """
    if name != "auto" and name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; it must be auto or one of {', '.join(DTYPES)}.")
    return choose_fast_dtype(torch.device(device)) if name == "auto" else DTYPES[name]


def choose_fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the GPU or processor computes it faster than float32, else float32."""
    return torch.bfloat16 if _has_bfloat16(device) else torch.float32


def get_dtype_name(dtype: torch.dtype) -> str:
    """Return the short name of a dtype, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):  # is_bf16_supported looks at the current GPU.
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        processor = torch.cpu.get_capabilities()
        # AMD's vector units multiply bfloat16 twice as fast as float32. Intel's take twice as long for it: only its
        # matrix units (AMX) are fast, which virtual machines often hide.
        has_vector_units = processor.get("avx512_bf16", False) and not _is_intel()
        return processor.get("amx_bf16", False) or has_vector_units
    return False


@cache
def _is_intel() -> bool:
    """Return whether the processor is Intel's; only Linux says."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
