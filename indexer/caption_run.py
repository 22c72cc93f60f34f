"""Write a caption of each photo of an index, with the vector by which it is searched as a text.

A run writes the captions that are missing and commits every few seconds of work, as `build_index` does. Shapes: B
photos, E embedding.
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
from indexer.decode import Decoded, DecodeJob, Outcome, decode_jobs
from indexer.decode_pool import decode_all

if TYPE_CHECKING:
    from engine.models.photo_captioners import PhotoCaptioner

CHANGED = "it has changed since it was indexed; index its folder again"
WROTE_NOTHING = "the captioner wrote no caption of it"


EncodeTexts = Callable[[Sequence[str]], tuple[np.ndarray, list[int]]]


@dataclass(frozen=True, slots=True)
class CaptionReport:
    """The report of a run over captions.

    written: number of captions that the run wrote. num_kept: number of photos that had a caption of this captioner.
    failed: photos that have no caption, and why. seconds: duration of the run.
    """

    written: int
    num_kept: int
    failed: tuple[Failure, ...]
    seconds: float


def index_captions(
    store: Store,
    captioner: PhotoCaptioner,
    encode_texts: EncodeTexts,
    *,
    roots: Sequence[Path] = (),
    workers: int | None = None,
    batch_size: int = 32,
    commit_seconds: float = 5.0,
    on_progress: Callable[[Progress], None] | None = None,
) -> CaptionReport:
    """Write a caption of every photo that has none by this captioner; captions of others are replaced.

    encode_texts: returns the unit vectors (B, E) of texts by the index's model. roots: absolute folders, to caption
    only the photos below them; none for all photos. The other parameters, the errors, and how work is kept: see
    `build_index`.
    """
    started = time.monotonic()
    with store.writing():
        photos = [
            photo
            for photo in store.read_photos(store.list_live_ids())
            if _find_path(photo, roots) is not None
        ]
        done = set(store.captions.photos_written_by(captioner.digest).tolist())
        missing = [photo for photo in photos if photo.id not in done]
        run = _Run(store, captioner, encode_texts, Pace(len(missing), on_progress))
        if missing:
            run.write(missing, roots, workers, batch_size, commit_seconds)
            store.optimize()
        num_kept = len(photos) - len(missing)
        return CaptionReport(run.num_written, num_kept, tuple(run.failed), time.monotonic() - started)


class _Run:
    """A run that decodes photos, captions them in batches, and commits."""

    def __init__(self, store: Store, captioner: PhotoCaptioner, encode_texts: EncodeTexts, pace: Pace):
        self.store, self.captioner, self.encode_texts, self.pace = store, captioner, encode_texts, pace
        self.waiting: list[tuple[Photo, np.ndarray]] = []
        self.new: list[NewCaption] = []
        self.failed: list[Failure] = []
        self.num_written = 0

    def write(
        self, photos: list[Photo], roots: Sequence[Path], workers: int | None, batch: int, seconds: float
    ) -> None:
        """Caption the photos and commit the captions."""
        paths = [_find_path(photo, roots) or photo.path for photo in photos]
        size = self.captioner.image_size
        outcomes = decode_all(map(DecodeJob, paths), size, workers)
        committed = time.monotonic()
        try:
            with closing(outcomes):
                for photo, path, outcome in zip(photos, paths, outcomes, strict=True):
                    self._take_outcome(photo, path, outcome)
                    if len(self.waiting) >= batch:
                        self._caption()
                    if time.monotonic() - committed > seconds:
                        self._commit()
                        committed = time.monotonic()
            self._caption()
        finally:
            self._commit()

    def _take_outcome(self, photo: Photo, first_path: Path, outcome: Outcome) -> None:
        """Keep the photo's pixels to be captioned, from its first path or, if that no longer holds it, from another."""

        def read(path: Path) -> Decoded:
            if path == first_path:
                return _check_digest(photo, outcome)
            return _check_digest(photo, decode_jobs([DecodeJob(path)], self.captioner.image_size)[0])

        other_paths = [path for path in photo.paths if path != first_path]
        decoded = read_first_readable([first_path, *other_paths], read)
        if isinstance(decoded, Failure):
            self._fail(decoded.path, decoded.reason)
        else:
            self.waiting.append((photo, decoded.pixels))

    def _caption(self) -> None:
        if not self.waiting:
            return
        texts = self.captioner.caption(np.stack([pixels for _, pixels in self.waiting]))
        photos = [photo for photo, _ in self.waiting]
        captioned = [(photo, text) for photo, text in zip(photos, texts, strict=True) if text.strip()]
        for photo, text in zip(photos, texts, strict=True):
            if not text.strip():
                self._fail(photo.path, WROTE_NOTHING)
        if captioned:
            vectors = self.encode_texts([text for _, text in captioned])[0].astype(np.float16)
            self.new += [
                NewCaption(photo.id, text, self.captioner.name, self.captioner.digest, vector)
                for (photo, text), vector in zip(captioned, vectors, strict=True)
            ]
        self.waiting.clear()
        self.pace.step(len(captioned))

    def _fail(self, path: Path, reason: str) -> None:
        self.failed.append(Failure(path, reason))
        self.pace.step(num_failed=1)

    def _commit(self) -> None:
        self.store.captions.put(self.new)
        self.num_written += len(self.new)
        self.new = []


def _check_digest(photo: Photo, outcome: Outcome) -> Decoded:
    """Return a decoded file if it holds the photo. Raises PhotoError with the reason if it does not."""
    if isinstance(outcome, PhotoError):
        raise outcome
    if outcome.digest != photo.digest:
        raise PhotoError(CHANGED)
    assert isinstance(outcome, Decoded)  # The job named no known digests, so the file was decoded.
    return outcome


def _find_path(photo: Photo, roots: Sequence[Path]) -> Path | None:
    """Return the first of a photo's paths below one of the roots, None where there is none; without roots, the
    first.
    """
    inside = (path for path in photo.paths if not roots or any(root in path.parents for root in roots))
    return next(inside, None)
