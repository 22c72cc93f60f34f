"""Match a text with candidate photos by ITM, from keys that are held, patches that are kept, or files read now.

Shapes: N photos, B photos of one part, P patches, V vision width, Q queries, E embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.blip2.qformer import PhotoKeys
from engine.errors import QueryError
from engine.index.store import Store
from engine.models.retrieval_model import PHOTO_BATCH, RetrievalModel
from engine.pictures.picture_batches import read_squares
from engine.progress import Pace, Progress
from engine.search.key_cache import KeyCache
from engine.types import Failure, Photo

SLOW_SECONDS = 2.0
"""Encoding that takes longer than this is told about."""


@dataclass(frozen=True)
class Matches:
    """What the matching head says of a text and photos.

    rows: ascending, the photos that could be read. itc: (N,) cosines of these, zeros where none were asked for. logits:
    (N, 2) of these, no match and match. failures: the photos that could not be read.
    """

    rows: list[int]
    itc: np.ndarray
    logits: np.ndarray
    failures: list[Failure]


class Reranking:
    """Match texts with photos, indexed or not.

    store: where patches may be kept; None for a searcher without an index. cache: keys of the photos that were read
    lately. tell: called with a line about encoding that takes long.
    """

    def __init__(
        self, store: Store | None, model: RetrievalModel, cache: KeyCache, tell: Callable[[str], None]
    ) -> None:
        self.tell = tell
        self._store, self._model, self._cache = store, model, cache

    def match(self, text: str, photos: Sequence[Photo], query_E: np.ndarray | None = None) -> Matches:
        """Match one text with photos. query_E: the text's unit vector, to compute the photos' ITC as well."""
        rows_read: list[int] = []
        failures: list[Failure] = []
        itc, logits = [np.zeros(0, np.float32)], [np.zeros((0, 2), np.float32)]
        start = self._model.start_texts([text])
        fold = query_E is None and not self._cache.max_bytes and self._model.folding_pays
        for rows, keys_or_patches in self._read(photos, failures, fold):
            rows_read += rows
            logits.append(self._model.match(keys_or_patches, start))
            if query_E is None or isinstance(keys_or_patches, torch.Tensor):
                itc.append(np.zeros(len(rows), np.float32))
            else:
                itc.append((self._model.compute_photo_vectors(keys_or_patches) @ query_E).max(axis=1))
        order = np.argsort(rows_read, kind="stable")
        return Matches(sorted(rows_read), np.concatenate(itc)[order], np.concatenate(logits)[order], failures)

    def compute_photo_keys(self, photo: Photo) -> PhotoKeys:
        """Return the keys and values of one photo. Raises QueryError with the reason when it cannot be read."""
        failures: list[Failure] = []
        for _, keys in self._read([photo], failures, fold=False):
            assert not isinstance(keys, torch.Tensor)
            return keys
        raise QueryError(f"{photo.path} cannot be read: {failures[0].reason}")

    def score(self, logits_N2: np.ndarray, itc_N: np.ndarray) -> np.ndarray:
        """Return the scores (N,) that put matched pairs in order (ARCHITECTURE, decision 1)."""
        return self._model.config.match_weight * logits_N2[:, 1] + itc_N

    def _read(
        self, photos: Sequence[Photo], failures: list[Failure], fold: bool
    ) -> Iterator[tuple[list[int], PhotoKeys | torch.Tensor]]:
        """Yield rows and their keys, or patches to `fold`: those held, those whose patches are kept, those read now."""
        held = [row for row, photo in enumerate(photos) if photo.digest in self._cache]
        for rows in in_parts(held, PHOTO_BATCH):
            yield rows, self._cache.take([photos[row].digest for row in rows])
        others = sorted(set(range(len(photos))) - set(held))
        for rows, patches in self._patches(photos, others, failures):
            if fold:
                yield rows, patches
            else:
                keys = self._model.compute_photo_keys(patches)
                self._cache.put([photos[row].digest for row in rows], keys)
                yield rows, keys

    def _patches(
        self, photos: Sequence[Photo], rows: Sequence[int], failures: list[Failure]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield rows and their patches (B, P, V): those that are kept, then those of files read and encoded now."""
        missing: list[int] = []
        for part in in_parts(rows, PHOTO_BATCH):
            patches_of_rows = zip(part, self._stored_patches([photos[row] for row in part]), strict=True)
            stored = {row: patches for row, patches in patches_of_rows if patches is not None}
            missing += [row for row in part if row not in stored]
            if stored:
                yield list(stored), self._model.unpack_patches(list(stored.values()), self._features)
        yield from self._encoded_patches(photos, missing, failures)

    def _encoded_patches(
        self, photos: Sequence[Photo], rows: Sequence[int], failures: list[Failure]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield rows and their patches (B, P, V) from files; a photo that cannot be read is added to `failures`."""
        size, pace = self._model.image_size, Pace(len(rows), self._tell_after(SLOW_SECONDS))
        at_once = self._model.vision_at_once
        batches = read_squares((photos[row].paths for row in rows), size, at_once)
        for part, squares in zip(in_parts(rows, at_once), batches, strict=True):
            decoded: dict[int, np.ndarray] = {}
            for row, square in zip(part, squares, strict=True):
                if isinstance(square, Failure):
                    failures.append(square)
                else:
                    decoded[row] = square
            if decoded:
                yield list(decoded), self._model.encode_patches(np.stack(list(decoded.values())))
            pace.step(len(part), num_failed=len(part) - len(decoded))

    def _tell_after(self, seconds: float) -> Callable[[Progress], None]:
        """Return what is to hear of the progress: it tells about it once so many seconds are over."""
        begin = time.monotonic() + seconds

        def tell(progress: Progress) -> None:
            if (
                time.monotonic() > begin
                and progress.seconds_left is not None
                and progress.done < progress.total
            ):
                self.tell(
                    f"{progress.done} of {progress.total} candidates encoded, {progress.seconds_left:.0f} s left."
                )

        return tell

    @property
    def _features(self) -> str:
        """How the index keeps patches."""
        return "none" if self._store is None else self._store.manifest.features

    def _stored_patches(self, photos: Sequence[Photo]) -> list[bytes | None]:
        """Return the patches' bytes of each photo, None where they are not kept."""
        ids = [photo.id for photo in photos if photo.id >= 0]
        if self._store is None or self._features == "none" or not ids:
            return [None] * len(photos)
        patches_of_ids = dict(zip(ids, self._store.read_patches(ids), strict=True))
        return [patches_of_ids.get(photo.id) for photo in photos]


def in_parts(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield the rows in their order, at most `size` at a time."""
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def best_first(scores: np.ndarray) -> np.ndarray:
    """Return the rows by score; equal ones as they were, which is ITC's order."""
    return np.argsort(-scores, kind="stable")
