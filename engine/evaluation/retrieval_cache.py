"""What an evaluation has done so far, on disk: patches, vectors and match logits of one model and one set.

Photos and logits are written in place as the work goes. A photo is marked as done when its patches and vectors are on
the disk, every few seconds: a kill or a power cut loses those seconds. Other files appear whole or not at all. Patches
are mapped, never loaded whole: a set may be larger than memory.

Shapes: N photos, M captions, P patches, V vision width, Q queries, E embedding.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.atomic import replace_file
from engine.errors import DataError
from engine.models.devices import get_dtype_name
from engine.models.retrieval_model import RetrievalModel

PROTOCOL_VERSION = 1
"""Part of the folder's name. Raise it with every change of qseek that changes a number in the cache: how a picture is
opened, squashed and normalised, how weights are folded, how vectors, ITC or match logits are computed. What an earlier
qseek left is then computed anew instead of being mixed with new numbers."""
TODO, DONE, UNREADABLE = 0, 1, 2
SECONDS_BETWEEN_SYNCS = 10.0


class EvaluationCache:
    """folder: of this set; what differs by model, dtype and version of the protocol lies in a folder of its own below.
    Raises DataError when it cannot be written, or the disk is too small for the patches."""

    def __init__(self, folder: Path, model: RetrievalModel):
        self.folder = folder / f"{model.digest[:12]}-{get_dtype_name(model.dtype)}-v{PROTOCOL_VERSION}"
        self.model = model
        self._unmarked: list[
            tuple[int, np.ndarray]
        ] = []  # photos that are written, but perhaps not on the disk yet
        self._synced = time.monotonic()
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
        vectors_shape = (num_photos, self.model.config.qformer.num_queries, self.model.config.embed_dim)
        if not (
            self._fits("patches.bin", np.int16, shape)
            and self._fits("vectors.bin", np.float32, vectors_shape)
        ):
            (self.folder / "photos.bin").unlink(
                missing_ok=True
            )  # it tells of values that are not there any more
        self._patches = self._open("patches.bin", np.int16, shape)
        self._vectors = self._open("vectors.bin", np.float32, vectors_shape)
        self._state = self._open("photos.bin", np.uint8, (num_photos,))

    def has_photos(self, start: int, stop: int) -> bool:
        """Whether these are marked as done."""
        return bool((self._state[start:stop] != TODO).all())

    def put_photos(
        self, start: int, readable_B: np.ndarray, patches: Tensor | None, vectors: np.ndarray | None
    ) -> None:
        """Write a batch: which pictures could be read, and the patches and vectors of those, in order.

        It is marked as done within SECONDS_BETWEEN_SYNCS, by a later call or by `sync_photos`.
        """
        rows = start + np.flatnonzero(readable_B)
        if patches is not None and vectors is not None:
            self._patches[rows] = patches.contiguous().view(torch.int16).cpu().numpy()
            self._vectors[rows] = vectors
        self._unmarked.append((start, readable_B))
        if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
            self.sync_photos()

    def sync_photos(self) -> None:
        """Mark all photos that are written as done, once their patches and vectors are on the disk."""
        self._patches.flush()
        self._vectors.flush()
        for start, readable_B in self._unmarked:
            self._state[start : start + len(readable_B)] = np.where(readable_B, DONE, UNREADABLE)
        self._state.flush()
        self._unmarked.clear()
        self._synced = time.monotonic()

    def find_readable(self) -> np.ndarray:
        """(N,) bool."""
        return np.asarray(self._state == DONE)

    def get_vectors(self) -> np.ndarray:
        """(N, Q, E) float32."""
        return self._vectors

    def read_patches(self, row: int) -> Tensor:
        """(1, P, V) of one photo, in the model's dtype."""
        return torch.from_numpy(np.array(self._patches[row : row + 1])).view(self.model.dtype)

    def load_or_compute(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that is made once."""
        path = self.folder / f"{name}.npy"
        if path.exists():
            return np.load(path)
        values = make()
        with replace_file(path) as file:
            np.save(file, values)
        return values

    def open_logits(self, pairs: np.ndarray) -> np.memmap:
        """(pairs,) float32, NaN where a pair has not been read yet."""
        path = self.folder / f"logits-{hashlib.blake2b(pairs.tobytes(), digest_size=8).hexdigest()}.bin"
        if not self._fits(path.name, np.float32, pairs.shape):
            with replace_file(path) as file:
                file.write(np.full(pairs.shape, np.nan, np.float32).tobytes())
        return self._open(path.name, np.float32, pairs.shape)

    def measure_disk_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def _fits(self, name: str, dtype: type, shape: tuple[int, ...]) -> bool:
        """Return whether a file is there and holds as many values."""
        path = self.folder / name
        return path.exists() and path.stat().st_size == int(np.prod(shape)) * np.dtype(dtype).itemsize

    def _open(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        """A file of zeros when it is not there, or holds another shape."""
        path = self.folder / name
        try:
            return np.memmap(path, dtype, "r+" if self._fits(name, dtype, shape) else "w+", shape=shape)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from error
