"""Which device and which dtype a model runs on, and what a dtype is called."""

from __future__ import annotations

import torch

from engine.models.malloc import keep_freed_memory

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def where_and_how(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """What "auto" means on this machine, which is made ready for it; see `load_model`."""
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be auto or one of {', '.join(DTYPES)}")
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if place.type == "cpu":
        keep_freed_memory()
    return place, fast_dtype(place) if dtype == "auto" else DTYPES[dtype]


def dtype_name(dtype: torch.dtype) -> str:
    """As people write it: bfloat16."""
    return str(dtype).removeprefix("torch.")


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the GPU or processor has it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.bfloat16
    return torch.float32
