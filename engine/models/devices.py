"""Which device and which dtype a model runs on, and what a dtype is called."""

from __future__ import annotations

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def choose_device(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Resolve "auto" to the device and dtype of this machine.

    device: "auto" (a GPU where there is one) or what torch.device takes. dtype: see `resolve_dtype`. Raises ValueError
    for an unknown dtype, RuntimeError for an unknown device.
    """
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    return place, resolve_dtype(dtype, place)


def resolve_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """Return the dtype that a name of DTYPES stands for; "auto" stands for what is fast on the device (`fast_dtype`).

    Raises ValueError for another name.
    """
    if name != "auto" and name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; it must be auto or one of {', '.join(DTYPES)}")
    return fast_dtype(torch.device(device)) if name == "auto" else DTYPES[name]


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the GPU or processor computes it in hardware, else float32."""
    return torch.bfloat16 if _has_bfloat16(device) else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """Return the short name of a dtype, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is about the current GPU
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        processor = torch.cpu.get_capabilities()
        return any(processor.get(unit, False) for unit in ("avx512_bf16", "amx_bf16"))
    return False
