"""Match a text with candidate photos by ITM, from keys in memory, patches in the index, or files that are read now.

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
from engine.models.retrieval_model import (
    PHOTO_BATCH,
    RetrievalModel,
    compute_match_probabilities,
    compute_scores,
)
from engine.pictures.picture_batches import read_squares
from engine.progress import Pace, Progress
from engine.search.key_cache import KeyCache
from engine.types import Failure, Photo

SLOW_SECONDS = 2.0
"""Seconds after which a progress line is told about the encoding of candidates."""


@dataclass(frozen=True)
class Matches:
    """The result of matching a text with photos.

    rows: the ascending numbers of the N photos that could be read. itc: their cosines (N,), zeros where they were not
    asked for. logits: their match logits (N, 2), [no match, match]. failures: the photos that could not be read.
    """

    rows: list[int]
    itc: np.ndarray
    logits: np.ndarray
    failures: list[Failure]


class Reranking:
    """A matcher of texts and photos, indexed or not.

    store: an index that may keep patches, None for a searcher without an index. cache: the keys of photos that were
    matched lately. tell: called with a line about encoding that takes long.
    """

    def __init__(
        self, store: Store | None, model: RetrievalModel, cache: KeyCache, tell: Callable[[str], None]
    ) -> None:
        self.tell = tell
        self._store, self._model, self._cache = store, model, cache

    def match(self, text: str, photos: Sequence[Photo], text_E: np.ndarray | None = None) -> Matches:
        """Match a text with photos. text_E: the text's unit vector, where the photos' ITC is asked for as well."""
        rows_read: list[int] = []
        failures: list[Failure] = []
        itc, logits = [np.zeros(0, np.float32)], [np.zeros((0, 2), np.float32)]
        start = self._model.start_texts([text])
        fold = text_E is None and not self._cache.max_bytes and self._model.folding_pays
        for rows, keys_or_patches in self._read(photos, failures, fold):
            rows_read += rows
            logits.append(self._model.match(keys_or_patches, start))
            if text_E is None or isinstance(keys_or_patches, torch.Tensor):
                itc.append(np.zeros(len(rows), np.float32))
            else:
                itc.append((self._model.compute_photo_vectors(keys_or_patches) @ text_E).max(axis=1))
        order = np.argsort(rows_read, kind="stable")
        return Matches(sorted(rows_read), np.concatenate(itc)[order], np.concatenate(logits)[order], failures)

    def compute_photo_keys(self, photo: Photo) -> PhotoKeys:
        """Compute the keys and values of one photo. Raises QueryError with the reason when it cannot be read."""
        failures: list[Failure] = []
        for _, keys in self._read([photo], failures, fold=False):
            assert not isinstance(keys, torch.Tensor)
            return keys
        raise QueryError(f"{photo.path} cannot be read: {failures[0].reason}.")

    def score(self, logits_N2: np.ndarray, itc_N: np.ndarray) -> np.ndarray:
        """Return the scores (N,) of matched pairs; see `compute_scores`."""
        return compute_scores(self._model.config, logits_N2, itc_N)

    def compute_probabilities(self, logits_N2: np.ndarray, itc_N: np.ndarray) -> np.ndarray:
        """Return the probabilities (N,) of matches; see `compute_match_probabilities`."""
        return compute_match_probabilities(self._model.config, logits_N2, itc_N)

    def _read(
        self, photos: Sequence[Photo], failures: list[Failure], fold: bool
    ) -> Iterator[tuple[list[int], PhotoKeys | torch.Tensor]]:
        """Yield the numbers of photos with their keys, or with their patches where `fold` asks for these.

        Photos whose keys are in memory come first, then those whose patches are in the index, then the others. A photo
        that cannot be read is added to `failures`.
        """
        cached = [row for row, photo in enumerate(photos) if photo.digest in self._cache]
        for rows in split_rows(cached, PHOTO_BATCH):
            yield rows, self._cache.take([photos[row].digest for row in rows])
        others = sorted(set(range(len(photos))) - set(cached))
        for rows, patches in self._read_patches(photos, others, failures):
            if fold:
                yield rows, patches
            else:
                keys = self._model.compute_photo_keys(patches)
                self._cache.put([photos[row].digest for row in rows], keys)
                yield rows, keys

    def _read_patches(
        self, photos: Sequence[Photo], rows: Sequence[int], failures: list[Failure]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield the numbers of photos with their patches (B, P, V): those in the index, then those encoded from
        files.
        """
        missing: list[int] = []
        for part in split_rows(rows, PHOTO_BATCH):
            patches_of_rows = zip(part, self._stored_patches([photos[row] for row in part]), strict=True)
            stored = {row: patches for row, patches in patches_of_rows if patches is not None}
            missing += [row for row in part if row not in stored]
            if stored:
                yield list(stored), self._model.unpack_patches(list(stored.values()), self._patch_kind)
        yield from self._encode_patches_of_files(photos, missing, failures)

    def _encode_patches_of_files(
        self, photos: Sequence[Photo], rows: Sequence[int], failures: list[Failure]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield the numbers of photos with their patches (B, P, V) from files.

        A photo that cannot be read is added to `failures`.
        """
        size, pace = self._model.image_size, Pace(len(rows), self._tell_after(SLOW_SECONDS))
        at_once = self._model.vision_at_once
        batches = read_squares((photos[row].paths for row in rows), size, at_once)
        for part, squares in zip(split_rows(rows, at_once), batches, strict=True):
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
        """Return a function that tells about the progress it is given, once so many seconds are over."""
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
    def _patch_kind(self) -> str:
        """Return how the index keeps patches: "store", "int8" or "none"."""
        return "none" if self._store is None else self._store.manifest.features

    def _stored_patches(self, photos: Sequence[Photo]) -> list[bytes | None]:
        """Return the bytes of each photo's patches, None where the index does not keep them."""
        ids = [photo.id for photo in photos if photo.id >= 0]
        if self._store is None or self._patch_kind == "none" or not ids:
            return [None] * len(photos)
        patches_of_ids = dict(zip(ids, self._store.read_patches(ids), strict=True))
        return [patches_of_ids.get(photo.id) for photo in photos]


def split_rows(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield row numbers in their order, at most `size` at a time."""
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def sort_best_first(scores: np.ndarray) -> np.ndarray:
    """Return the row numbers by score, the best first; rows with equal scores keep their order, which is that of
    ITC.
    """
    return np.argsort(-scores, kind="stable")
