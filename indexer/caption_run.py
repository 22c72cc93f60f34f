"""A caption for each photo of an index, by whatever writes them, with its vector: searched as texts too.

A run writes what is missing, and commits after seconds of work, as `build_index` does. B photos, E embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import PhotoError
from engine.index.caption_table import NewCaption
from engine.index.store import Store
from engine.pictures.opening import read_first_readable
from engine.progress import Pace, Progress
from engine.types import Failure, Photo
from indexer.decode import Decoded, DecodeJob, Outcome, attempt
from indexer.decode_pool import decode_all

if TYPE_CHECKING:
    from engine.models.photo_captioners import PhotoCaptioner

CHANGED = "it has changed since it was indexed; index its folder again"
WROTE_NOTHING = "the captioner wrote nothing of it"


EncodeTexts = Callable[[Sequence[str]], tuple[np.ndarray, list[int]]]


@dataclass(frozen=True, slots=True)
class CaptionReport:
    """written: captions of this run. kept: photos that had one of the same captioner. failed: photos without one."""

    written: int
    kept: int
    failed: tuple[Failure, ...]
    seconds: float


def index_captions(
    store: Store,
    writer: PhotoCaptioner,
    encode_texts: EncodeTexts,
    *,
    roots: Sequence[Path] = (),
    workers: int | None = None,
    batch_size: int = 32,
    commit_seconds: float = 5.0,
    on_progress: Callable[[Progress], None] | None = None,
) -> CaptionReport:
    """Caption every photo that has none by this writer; another writer's captions are replaced.

    encode_texts: texts -> unit vectors (B, E) of the index's model. roots: absolute, only photos beneath them; none =
    all. The rest: see `build_index`; what is raised and kept, too.
    """
    started = time.monotonic()
    with store.writing():
        photos = [
            photo for photo in store.read_photos(store.list_live_ids()) if _place(photo, roots) is not None
        ]
        done = set(store.captions.photos_written_by(writer.digest).tolist())
        missing = [photo for photo in photos if photo.id not in done]
        run = _Run(store, writer, encode_texts, Pace(len(missing), on_progress))
        if missing:
            run.write(missing, roots, workers, batch_size, commit_seconds)
            store.optimize()
        kept = len(photos) - len(missing)
        return CaptionReport(run.num_written, kept, tuple(run.failed), time.monotonic() - started)


class _Run:
    """Decodes photos, captions them in batches, and commits."""

    def __init__(self, store: Store, writer: PhotoCaptioner, encode_texts: EncodeTexts, pace: Pace):
        self.store, self.writer, self.encode_texts, self.pace = store, writer, encode_texts, pace
        self.waiting: list[tuple[Photo, np.ndarray]] = []
        self.new: list[NewCaption] = []
        self.failed: list[Failure] = []
        self.num_written = 0

    def write(
        self, photos: list[Photo], roots: Sequence[Path], workers: int | None, batch: int, seconds: float
    ) -> None:
        places = [_place(photo, roots) or photo.path for photo in photos]
        size = self.writer.image_size
        outcomes = decode_all(map(DecodeJob, places), size, workers)
        committed = time.monotonic()
        try:
            with closing(outcomes):
                for photo, place, outcome in zip(photos, places, outcomes, strict=True):
                    self._take(photo, place, outcome)
                    if len(self.waiting) >= batch:
                        self._caption()
                    if time.monotonic() - committed > seconds:
                        self._commit()
                        committed = time.monotonic()
            self._caption()
        finally:
            self._commit()

    def _take(self, photo: Photo, place: Path, outcome: Outcome) -> None:
        """Keep the photo's pixels to be captioned; a place that does not hold it any more is followed by the others."""

        def read(path: Path) -> Decoded:
            outcome_there = (
                outcome if path == place else attempt([DecodeJob(path)], self.writer.image_size)[0]
            )
            return _check(photo, outcome_there)

        decoded = read_first_readable([place, *(path for path in photo.paths if path != place)], read)
        if isinstance(decoded, Failure):
            self._fail(decoded.path, decoded.reason)
        else:
            self.waiting.append((photo, decoded.pixels))

    def _caption(self) -> None:
        if not self.waiting:
            return
        texts = self.writer.caption(np.stack([pixels for _, pixels in self.waiting]))
        found = [(photo, text) for (photo, _), text in zip(self.waiting, texts, strict=True) if text.strip()]
        for (photo, _), text in zip(self.waiting, texts, strict=True):
            if not text.strip():
                self._fail(photo.path, WROTE_NOTHING)
        if found:
            vectors = self.encode_texts([text for _, text in found])[0].astype(np.float16)
            self.new += [
                NewCaption(photo.id, text, self.writer.name, self.writer.digest, vector)
                for (photo, text), vector in zip(found, vectors, strict=True)
            ]
        self.waiting.clear()
        self.pace.step(len(found))

    def _fail(self, path: Path, reason: str) -> None:
        self.failed.append(Failure(path, reason))
        self.pace.step(num_failed=1)

    def _commit(self) -> None:
        self.store.captions.put(self.new)
        self.num_written += len(self.new)
        self.new = []


def _check(photo: Photo, outcome: Outcome) -> Decoded:
    """Return what was read where it is the photo. Raises PhotoError with the reason where it is not."""
    if isinstance(outcome, PhotoError):
        raise outcome
    if outcome.digest != photo.digest:
        raise PhotoError(CHANGED)
    assert isinstance(outcome, Decoded)  # nothing was said to be known
    return outcome


def _place(photo: Photo, roots: Sequence[Path]) -> Path | None:
    """Where the photo lies beneath one of the roots."""
    inside = (path for path in photo.paths if not roots or any(root in path.parents for root in roots))
    return next(inside, None)
