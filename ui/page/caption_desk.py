"""Write captions for the page in a thread of its own, so that photos are shown without waiting for captions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.errors import PhotoError, QseekError
from engine.types import Failure, Photo

if TYPE_CHECKING:
    from engine.models.photo_captioners import PhotoCaptioner

CAPTION_BATCH = 4
"""Number of photos that are captioned at once; a search that comes meanwhile shares the processor with them."""
MAX_WAITING = 200
MAX_CAPTIONS = 20_000


class CaptionDesk:
    """Takes photos, and has their captions some time later. Each photo is captioned once.

    load: loads the captioner, when the first photo comes. error: why no more captions will be written, in words; None
    as long as nothing failed.
    """

    def __init__(self, load: Callable[[], PhotoCaptioner]):
        self._load = load
        self._captioner: PhotoCaptioner | None = None
        self._captioner_in_use = threading.Lock()  # held while the captioner is loaded and while it writes
        self._changed = threading.Condition()
        self._waiting: list[Photo] = []
        self._captions_by_digest: dict[str, str | Failure] = {}
        self._thread: threading.Thread | None = None
        self.error: str | None = None

    def request_captions(self, photos: Sequence[Photo]) -> None:
        """Ask for captions of photos. The photos of the last request are captioned first."""
        with self._changed:
            photos = [photo for photo in photos if photo.digest not in self._captions_by_digest]
            new_photos = {photo.digest: photo for photo in photos}
            old_photos = [photo for photo in self._waiting if photo.digest not in new_photos]
            self._waiting = [*new_photos.values(), *old_photos][:MAX_WAITING]
            if self._waiting and self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="captions", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def get_caption(self, photo: Photo) -> str | Failure | None:
        """Return the caption of a photo, or why the photo cannot be read; None as long as it is not captioned."""
        return self._captions_by_digest.get(photo.digest)

    def answer(self, photo: Photo, question: str) -> str:
        """Answer a question about a photo.

        Raises QueryError for what the captioner cannot answer, PhotoError for a photo that cannot be read.
        """
        from engine.search.hit_captions import write_texts_of

        with self._captioner_in_use:
            captioner = self._get_captioner()
            (text,) = write_texts_of(
                [photo], captioner.image_size, lambda pictures: captioner.answer(pictures, [question])
            )
        if isinstance(text, Failure):
            raise PhotoError(text.reason)
        return text

    def _get_captioner(self) -> PhotoCaptioner:
        if self._captioner is None:
            self._captioner = self._load()
        return self._captioner

    def _write_all(self) -> None:
        """Write captions of all photos that wait and will come. Ends only after an error."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                batch = self._waiting[:CAPTION_BATCH]
            try:
                self._write_batch(batch)
            except Exception as error:  # whatever it is, the page must not wait for ever
                is_plain = isinstance(error, QseekError)
                self.error = str(error) if is_plain else f"Captions failed: {type(error).__name__}: {error}."
            with self._changed:
                if self.error:
                    self._waiting = []
                    self._thread = None
                    return
                finished = {photo.digest for photo in batch}
                self._waiting = [photo for photo in self._waiting if photo.digest not in finished]

    def _write_batch(self, photos: list[Photo]) -> None:
        from engine.search.hit_captions import write_texts_of

        with self._captioner_in_use:
            captioner = self._get_captioner()
            texts = list(write_texts_of(photos, captioner.image_size, captioner.caption))
        for photo, text in zip(photos, texts, strict=True):
            self._captions_by_digest[photo.digest] = text
        while len(self._captions_by_digest) > MAX_CAPTIONS:
            self._captions_by_digest.pop(next(iter(self._captions_by_digest)))
