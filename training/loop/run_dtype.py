"""Decide which dtype a run computes in: "auto" is bfloat16 only where this machine computes it in hardware.

A recipe says "auto". A run resolves it once, when it begins, and its checkpoint keeps what it was resolved to. Without
the hardware, bfloat16 takes about 30 times as long as float32.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch

from engine.errors import TrainingError
from engine.models.devices import DTYPES, choose_fast_dtype, get_dtype_name, resolve_dtype
from training.distributed.world import device_of_process
from training.loop.optimizer import OptimConfig

Config = TypeVar("Config")


def resolve_config_dtypes(config: Config, device: torch.device | None = None) -> Config:
    """Return a copy of a recipe in which no dtype is "auto", however deep its `OptimConfig`s are.

    config: a dataclass of dataclasses and tuples of them. device: where the run computes, by default where this process
    does. Raises TrainingError for a dtype that is neither "auto" nor one of `devices.DTYPES`.
    """
    where = device_of_process() if device is None else device
    return _resolved(config, where)


def _resolved(value: Any, device: torch.device) -> Any:
    if isinstance(value, OptimConfig):
        return replace(value, dtype=_dtype_of(value, device))
    if isinstance(value, tuple):
        return tuple(_resolved(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _resolved(getattr(value, f.name), device) for f in fields(value)})
    return value


def _dtype_of(config: OptimConfig, device: torch.device) -> str:
    try:
        return get_dtype_name(resolve_dtype(config.dtype, device))
    except ValueError:
        raise TrainingError(
            f"optim.dtype is {config.dtype!r}; it must be one of auto, {', '.join(DTYPES)}."
        ) from None


def fast_autocast(device: torch.device) -> torch.autocast:
    """Return the context in which products are computed in bfloat16 where the device has it in hardware.

    Elsewhere everything in it stays as it is: float32 is read and float32 comes out.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_fast_dtype(device) == torch.bfloat16)


def advise_on_dtype(then: str, device: torch.device) -> str:
    """Return what to do with a checkpoint that was made in another dtype than the run would go on in."""
    advice = f"go on with them (--set optim.dtype={then})"
    if DTYPES.get(then) == torch.bfloat16 and choose_fast_dtype(device) != torch.bfloat16:
        advice += ", which is about 30 times as slow on this machine, since it has no bfloat16 in hardware"
    return advice
