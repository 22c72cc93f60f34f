"""Store on disk what an evaluation has done so far: patches, vectors and match logits of one model and one set.

Photos and logits are written in place as the work goes on. A photo is marked as done when its patches and vectors are
on the disk, every few seconds: a kill or a power cut loses those seconds. Other files appear whole or not at all.
Patches are mapped, never loaded whole: a set may be larger than memory.

Shapes: N photos, M captions, B photos of a batch, P patches, V vision width, Q queries, E embedding.
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
from engine.wording import count_text

PROTOCOL_VERSION = 1
"""A part of the folder's name. Raise it with every change of qseek that changes a number in the cache: how a picture is
opened, squashed and normalised, how weights are folded, how vectors, ITC or match logits are computed. The values of an
earlier qseek are then computed anew instead of being mixed with new ones."""
TODO, DONE, UNREADABLE = 0, 1, 2
"""The states of a photo."""
SECONDS_BETWEEN_SYNCS = 10.0


class EvaluationCache:
    """The folder in which an evaluation stores its work, for one set, model, dtype and version of the protocol."""

    def __init__(self, folder: Path, model: RetrievalModel):
        """Make the folder of this model below the folder of the set. Raise DataError when it cannot be written."""
        self.folder = folder / f"{model.digest[:12]}-{get_dtype_name(model.dtype)}-v{PROTOCOL_VERSION}"
        self.model = model
        # Photos that are written, but perhaps not on the disk yet: the first number and which of them are readable.
        self._unmarked: list[tuple[int, np.ndarray]] = []
        self._synced = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}.") from error

    def begin_photos(self, num_photos: int) -> None:
        """Open the files of the photos, and make those that are missing.

        Raise DataError when the disk is too small for the patches.
        """
        num_patches, width = self.model.patch_shape
        values = width * self.model.dtype.itemsize // 2  # stored as int16, since numpy has no bfloat16
        shape = (num_photos, num_patches, values)
        if not (self.folder / "patches.bin").exists():
            self._check_disk_space(num_photos, 2 * num_photos * num_patches * values)
        vectors_shape = (num_photos, self.model.config.qformer.num_queries, self.model.config.embed_dim)
        if not (
            self._fits("patches.bin", np.int16, shape)
            and self._fits("vectors.bin", np.float32, vectors_shape)
        ):
            # The marks are of values that do not exist any more.
            (self.folder / "photos.bin").unlink(missing_ok=True)
        self._patches = self._open("patches.bin", np.int16, shape)
        self._vectors = self._open("vectors.bin", np.float32, vectors_shape)
        self._state = self._open("photos.bin", np.uint8, (num_photos,))

    def _check_disk_space(self, num_photos: int, num_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise DataError(
                f"The patches of {count_text(num_photos, 'photo')} take {num_bytes / 2**30:.1f} GiB in {self.folder}, "
                f"{free / 2**30:.1f} GiB are free; choose another disk with --cache."
            )

    def has_photos(self, start: int, stop: int) -> bool:
        """Return whether all photos from `start` to `stop` are marked as done or unreadable."""
        return bool((self._state[start:stop] != TODO).all())

    def put_photos(
        self, start: int, readable_B: np.ndarray, patches: Tensor | None, vectors: np.ndarray | None
    ) -> None:
        """Write a batch of photos; it is marked within SECONDS_BETWEEN_SYNCS, by a later call or by `sync_photos`.

        start: the number of the batch's first photo.
        readable_B: which of its pictures could be read.
        patches, vectors: those of the readable pictures, in order; None when there is none.
        """
        rows = start + np.flatnonzero(readable_B)
        if patches is not None and vectors is not None:
            self._patches[rows] = patches.contiguous().view(torch.int16).cpu().numpy()
            self._vectors[rows] = vectors
        self._unmarked.append((start, readable_B))
        if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
            self.sync_photos()

    def sync_photos(self) -> None:
        """Write patches and vectors to the disk, and then mark all photos that have been put."""
        self._patches.flush()
        self._vectors.flush()
        for start, readable_B in self._unmarked:
            self._state[start : start + len(readable_B)] = np.where(readable_B, DONE, UNREADABLE)
        self._state.flush()
        self._unmarked.clear()
        self._synced = time.monotonic()

    def find_readable(self) -> np.ndarray:
        """Return for each photo whether it is done and its picture could be read, (N,) bool."""
        return np.asarray(self._state == DONE)

    def get_vectors(self) -> np.ndarray:
        """Return the vectors of all photos, (N, Q, E) float32; those of photos that are not done are zeros."""
        return self._vectors

    def read_patches(self, number: int) -> Tensor:
        """Read the patches of one photo, (1, P, V) in the model's dtype."""
        return torch.from_numpy(np.array(self._patches[number : number + 1])).view(self.model.dtype)

    def load_or_compute(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Load an array by its name; compute and save it when it is not there yet."""
        path = self.folder / f"{name}.npy"
        if path.exists():
            return np.load(path)
        values = compute()
        with replace_file(path) as file:
            np.save(file, values)
        return values

    def open_logits(self, pairs: np.ndarray) -> np.memmap:
        """Open the file of the match logits of these pairs, (pairs,) float32, NaN where none is computed yet."""
        path = self.folder / f"logits-{hashlib.blake2b(pairs.tobytes(), digest_size=8).hexdigest()}.bin"
        if not self._fits(path.name, np.float32, pairs.shape):
            with replace_file(path) as file:
                file.write(np.full(pairs.shape, np.nan, np.float32).tobytes())
        return self._open(path.name, np.float32, pairs.shape)

    def measure_disk_bytes(self) -> int:
        """Return the number of bytes that the files of the cache take."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def _fits(self, name: str, dtype: type, shape: tuple[int, ...]) -> bool:
        """Return whether a file exists and holds as many values as an array of this shape."""
        path = self.folder / name
        return path.exists() and path.stat().st_size == int(np.prod(shape)) * np.dtype(dtype).itemsize

    def _open(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        """Map a file as an array; one that is missing or holds another number of values becomes a file of zeros."""
        path = self.folder / name
        try:
            return np.memmap(path, dtype, "r+" if self._fits(name, dtype, shape) else "w+", shape=shape)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}.") from error
