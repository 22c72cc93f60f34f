"""What an evaluation has done so far, on disk: patches, vectors and match logits of one model and one set.

Every file is written in place as the work goes, what is done is marked after it, so a kill loses the batch at hand.
Patches are mapped, never loaded whole: a set may be larger than memory.

Shapes: N photos, M captions, P patches, V vision width, Q queries, E embedding.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.errors import DataError
from engine.models.devices import dtype_name
from engine.models.retrieval_model import RetrievalModel

TODO, DONE, UNREADABLE = 0, 1, 2


class EvaluationCache:
    """folder: of this set; what differs by model and dtype lies in a folder of its own below. Raises DataError when
    it cannot be written, or the disk is too small for the patches."""

    def __init__(self, folder: Path, model: RetrievalModel):
        self.folder = folder / f"{model.digest[:12]}-{dtype_name(model.dtype)}"
        self.model = model
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}") from error

    def begin_photos(self, num_photos: int) -> None:
        """Open, or make, the files of so many photos."""
        num_patches, width = self.model.patch_shape
        values = width * self.model.dtype.itemsize // 2  # as int16: numpy has no bfloat16
        shape = (num_photos, num_patches, values)
        path = self.folder / "patches.bin"
        if not path.exists():
            needed, free = 2 * num_photos * num_patches * values, shutil.disk_usage(self.folder).free
            if needed > free:
                raise DataError(
                    f"the patches of {num_photos:,} photos take {needed / 2**30:.1f} GiB in {self.folder}, "
                    f"{free / 2**30:.1f} GiB are free; choose another disk with --cache"
                )
        queries, embed = self.model.config.qformer.num_queries, self.model.config.embed_dim
        self._patches = self._open("patches.bin", np.int16, shape)
        self._vectors = self._open("vectors.bin", np.float32, (num_photos, queries, embed))
        self._state = self._open("photos.bin", np.uint8, (num_photos,))

    def has_photos(self, start: int, stop: int) -> bool:
        """Whether these were done."""
        return bool((self._state[start:stop] != TODO).all())

    def put_photos(
        self, start: int, readable_B: np.ndarray, patches: Tensor | None, vectors: np.ndarray | None
    ) -> None:
        """A batch: which pictures could be read, and the patches and vectors of those, in order."""
        rows = start + np.flatnonzero(readable_B)
        if patches is not None and vectors is not None:
            self._patches[rows] = patches.contiguous().view(torch.int16).cpu().numpy()
            self._vectors[rows] = vectors
        self._state[start : start + len(readable_B)] = np.where(readable_B, DONE, UNREADABLE)

    def readable(self) -> np.ndarray:
        """(N,) bool."""
        return np.asarray(self._state == DONE)

    def vectors(self) -> np.ndarray:
        """(N, Q, E) float32."""
        return self._vectors

    def patches(self, row: int) -> Tensor:
        """(1, P, V) of one photo, in the model's dtype."""
        return torch.from_numpy(np.array(self._patches[row : row + 1])).view(self.model.dtype)

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that is made once."""
        path = self.folder / f"{name}.npy"
        if path.exists():
            return np.load(path)
        made, half = make(), path.with_suffix(".half.npy")
        np.save(half, made)
        os.replace(half, path)
        return made

    def logits(self, pairs: np.ndarray) -> np.memmap:
        """(pairs,) float32, NaN where a pair has not been read yet."""
        path = self.folder / f"logits-{hashlib.blake2b(pairs.tobytes(), digest_size=8).hexdigest()}.bin"
        if not path.exists():
            half = path.with_suffix(".half")
            np.full(pairs.shape, np.nan, np.float32).tofile(half)
            os.replace(half, path)
        return self._open(path.name, np.float32, pairs.shape)

    def disk_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def _open(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        """A file of zeros when it is not there, or holds another shape."""
        path = self.folder / name
        expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
        fits = path.exists() and path.stat().st_size == expected
        try:
            return np.memmap(path, dtype, "r+" if fits else "w+", shape=shape)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from error
