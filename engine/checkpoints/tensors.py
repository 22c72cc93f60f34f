"""Tensors in files: the shape is known when the file is opened, the values are read when they are asked for.

Weights come from safetensors files, or from .pth and .bin files that are opened with `weights_only=True`; a file that
holds anything but tensors is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.checkpoints.layout import missing_file
from engine.errors import CheckpointError


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its shape is known, its values are read when they are asked for."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def changed(self, change: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> StoredTensor:
        """The same after `change`, which gives a tensor of `shape`."""
        return StoredTensor(shape, lambda: change(self.read()))


def stored(tensor: Tensor) -> StoredTensor:
    """A tensor that is in memory already."""
    return StoredTensor(tuple(tensor.shape), lambda: tensor)


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, not yet read. Raises CheckpointError when it is not a whole one."""
    if not path.is_file():
        raise missing_file(path.parent, path.name)
    try:
        file = safe_open(str(path), framework="pt")
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: {error}; copy it again."
        ) from error
    return {name: StoredTensor(shapes[name], lambda name=name: file.get_tensor(name)) for name in names}  # type: ignore[misc]


def read_pickled(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a .pth or .bin file, mapped into memory. Raises CheckpointError for anything but tensors in it."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not there.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever its readers raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} was refused: it is damaged, or holds more than tensors and could run code when read ({first})."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # LAVIS' runner keeps the optimizer and the config beside it
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items())
    ):
        raise CheckpointError(f"{path} holds no state dict of tensors.")
    return {key: stored(tensor) for key, tensor in state.items()}
