"""Captions for the page, written by a thread of its own: what was found is shown without waiting for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.errors import PhotoError, QseekError
from engine.types import Failure, Photo

if TYPE_CHECKING:
    from engine.models.photo_captioners import PhotoCaptioner

AT_ONCE = 4  # photos: a question that comes meanwhile shares the processor with so many at most
MOST_WANTED = 200
MOST_KEPT = 20_000


class CaptionDesk:
    """Photos are handed in, their captions are there some time later; each photo is captioned once.

    load: gives what writes, called when the first photo comes. error: why there will be no more, in words.
    """

    def __init__(self, load: Callable[[], PhotoCaptioner]):
        self._load = load
        self._writer: PhotoCaptioner | None = None
        self._writing = threading.Lock()  # held while the writer is loaded and while it writes
        self._changed = threading.Condition()
        self._wanted: list[Photo] = []
        self._known: dict[str, str | Failure] = {}
        self._thread: threading.Thread | None = None
        self.error: str | None = None

    def request_captions(self, photos: Sequence[Photo]) -> None:
        """Those asked for last come first."""
        with self._changed:
            photos = [photo for photo in photos if photo.digest not in self._known]
            new = {photo.digest: photo for photo in photos}
            rest = [photo for photo in self._wanted if photo.digest not in new]
            self._wanted = [*new.values(), *rest][:MOST_WANTED]
            if self._wanted and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="captions", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def get_caption(self, photo: Photo) -> str | Failure | None:
        """Its caption, or why it cannot be read; None as long as it is not written."""
        return self._known.get(photo.digest)

    def answer(self, photo: Photo, question: str) -> str:
        """Raises QueryError for what the writer cannot answer, PhotoError for a photo that cannot be read."""
        from engine.search.hit_captions import write_texts_of

        with self._writing:
            writer = self._loaded()
            (text,) = write_texts_of([photo], writer.image_size, lambda one: writer.answer(one, [question]))
        if isinstance(text, Failure):
            raise PhotoError(text.reason)
        return text

    def _loaded(self) -> PhotoCaptioner:
        if self._writer is None:
            self._writer = self._load()
        return self._writer

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted)
                some = self._wanted[:AT_ONCE]
            try:
                self._write(some)
            except Exception as error:  # whatever it is, the page must not wait for ever
                is_ours = isinstance(error, QseekError)
                self.error = str(error) if is_ours else f"captions failed: {type(error).__name__}: {error}"
            with self._changed:
                done = {photo.digest for photo in some}
                self._wanted = (
                    [] if self.error else [photo for photo in self._wanted if photo.digest not in done]
                )
                if self.error:
                    self._thread = None
                    return

    def _write(self, photos: list[Photo]) -> None:
        from engine.search.hit_captions import write_texts_of

        with self._writing:
            writer = self._loaded()
            texts = list(write_texts_of(photos, writer.image_size, writer.caption))
        for photo, text in zip(photos, texts, strict=True):
            self._known[photo.digest] = text
        while len(self._known) > MOST_KEPT:
            self._known.pop(next(iter(self._known)))
