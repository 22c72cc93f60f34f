"""Open files of tensors: the shapes are known at once, and the values are read when they are asked for.

Weights come from safetensors files, or from .pth and .bin files that are opened with `weights_only=True`. A file that
holds anything but tensors is refused. The word embeddings of a Q-Former may be stored as int8.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.checkpoints.layout import missing_file_error
from engine.errors import CheckpointError

WORDS, WORD_SCALES = "qformer.words.weight", "qformer.words.scales"
LARGEST_INT8 = 127


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


def pack_words(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network with the word embeddings (K, D) as int8, and their scales (K,) as float32.

    A table of 30,522 words of width 384 takes 12 MB instead of 23. A value moves by half a scale at most, which is 0.4
    percent of the largest value of its word.
    """
    words_KD = state[WORDS].float()
    scales_K = words_KD.abs().amax(dim=1).clamp(min=1e-12) / LARGEST_INT8
    rounded_KD = (words_KD / scales_K[:, None]).round().to(torch.int8)
    return {**state, WORDS: rounded_KD, WORD_SCALES: scales_K}


def unpack_words(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return tensors whose word embeddings are multiplied by their scales when they are read."""
    others = {name: tensor for name, tensor in tensors.items() if name != WORD_SCALES}
    if WORD_SCALES in tensors and WORDS in tensors:
        scales, words = tensors[WORD_SCALES], tensors[WORDS]
        others[WORDS] = words.with_change(
            lambda rounded_KD: rounded_KD.float() * scales.read()[:, None], words.shape
        )
    return others
