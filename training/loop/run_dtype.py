"""Decide in which dtype a run computes: "auto" is bfloat16 only where this machine computes it in hardware.

A recipe says "auto". A run resolves it once, when it begins, and its checkpoint keeps the resolved dtype. Without the
hardware, bfloat16 takes about 30 times as long as float32.
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
    """Return a copy of a recipe in which the dtype of every `OptimConfig` is resolved, however deep it is.

    config: a dataclass of dataclasses and tuples of them. device: the device of the run, by default that of this
    process. Raise TrainingError for a dtype that is neither "auto" nor one of `devices.DTYPES`.
    """
    return _resolve_dtypes(config, device_of_process() if device is None else device)


def _resolve_dtypes(value: Any, device: torch.device) -> Any:
    if isinstance(value, OptimConfig):
        return replace(value, dtype=_resolve_name(value, device))
    if isinstance(value, tuple):
        return tuple(_resolve_dtypes(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        resolved = {
            field.name: _resolve_dtypes(getattr(value, field.name), device) for field in fields(value)
        }
        return replace(value, **resolved)
    return value


def _resolve_name(config: OptimConfig, device: torch.device) -> str:
    try:
        return get_dtype_name(resolve_dtype(config.dtype, device))
    except ValueError:
        raise TrainingError(
            f"optim.dtype is {config.dtype!r}; it must be auto or one of {', '.join(DTYPES)}."
        ) from None


def fast_autocast(device: torch.device) -> torch.autocast:
    """Return a context in which matrix products are computed in bfloat16, if the device has it in hardware.

    On other devices the context changes nothing.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_fast_dtype(device) == torch.bfloat16)


def advise_on_dtype(then: str, device: torch.device) -> str:
    """Return what to do with a checkpoint of another dtype than the one in which the run would go on.

    then: the dtype of the checkpoint. device: the device of the run.
    """
    advice = f"go on with them (--set optim.dtype={then})"
    if DTYPES.get(then) == torch.bfloat16 and choose_fast_dtype(device) != torch.bfloat16:
        advice += (
            ", which is up to 30 times as slow on this machine, since its hardware is not made for bfloat16"
        )
    return advice
