"""Keep encoded views in a file, so that a run which goes on, and the next run, need not encode the pictures again.

A file is named after a digest of all that its values depend on. It grows row by row while it is made, so that a stopped
run loses a few pictures. It may be deleted at any time between runs.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.atomic import HALF_WRITTEN, sync_folder
from engine.checkpoints.filling import compute_tensor_digest
from engine.checkpoints.tensors import as_stored

BYTES_OF_A_VALUE = 2
DIGITS_OF_DIGEST = 16


def compute_views_digest(encoder: nn.Module, pictures: np.ndarray, *settings: Any) -> str:
    """Return the name of the views of pictures: a digest of the encoder's weights, the pixels and all settings."""
    weights = {name: as_stored(tensor) for name, tensor in encoder.state_dict().items()}
    digest = hashlib.sha256(compute_tensor_digest(weights).encode())
    digest.update(repr((settings, pictures.shape)).encode())
    digest.update(np.ascontiguousarray(pictures).data)
    return digest.hexdigest()[:DIGITS_OF_DIGEST]


def read_or_make(
    path: Path, row_shape: Sequence[int], count: int, compute: Callable[[int], Tensor], batch: int
) -> Tensor:
    """Return the bfloat16 tensor (count, *row_shape) of a file, which is made first where it is not there.

    compute: returns up to `batch` rows, given the number of rows before them. A half-written file goes on where it
    stopped.
    """
    row_bytes = BYTES_OF_A_VALUE * math.prod(row_shape)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(path.name + HALF_WRITTEN)
        num_done = (half.stat().st_size // row_bytes if half.is_file() else 0) // batch * batch
        with half.open("r+b" if half.is_file() else "wb") as file:
            file.truncate(num_done * row_bytes)
            file.seek(num_done * row_bytes)
            for first in range(num_done, count, batch):
                file.write(compute(first).contiguous().view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
        sync_folder(path.parent)
    size = count * math.prod(row_shape)
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.bfloat16).view(count, *row_shape)
