"""Open files of tensors: the shapes are known at once, and the values are read when they are asked for.

Weights come from safetensors files, or from .pth and .bin files that are opened with `weights_only=True`. A file that
holds anything but tensors is refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.checkpoints.layout import missing_file_error
from engine.errors import CheckpointError


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, whose shape is known and whose values `read` returns."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def with_change(self, change: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> StoredTensor:
        """Return a StoredTensor that applies `change` when it is read; `shape` is the shape of the result."""
        return StoredTensor(shape, lambda: change(self.read()))


def as_stored(tensor: Tensor) -> StoredTensor:
    """Return a tensor that is in memory already as a StoredTensor."""
    return StoredTensor(tuple(tensor.shape), lambda: tensor)


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Open a safetensors file and return its tensors by name.

    Raises CheckpointError when the file is missing, damaged or cut off.
    """
    if not path.is_file():
        raise missing_file_error(path.parent, path.name)
    try:
        file = safe_open(str(path), framework="pt")
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}). Copy it again."
        ) from error
    return {name: StoredTensor(shapes[name], lambda name=name: file.get_tensor(name)) for name in names}  # type: ignore[misc]


def read_pickled(path: Path) -> dict[str, StoredTensor]:
    """Open a .pth or .bin file and return its tensors by name.

    They are mapped into memory, unless the file has the format from before PyTorch 1.6, which cannot be mapped.
    Raises CheckpointError for a file that holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not there.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch passes on every kind of error that its readers raise.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} was refused: it is damaged, or it holds more than tensors and could run code ({first})."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # LAVIS keeps the optimizer and the config beside it.
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items())
    ):
        raise CheckpointError(f"{path} holds no tensors by name (a state dict).")
    return {key: as_stored(tensor) for key, tensor in state.items()}
