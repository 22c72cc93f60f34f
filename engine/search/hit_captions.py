"""Write captions of photo files: read them in threads and caption them in batches.

Shapes: B photos, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from engine.models.photo_captioners import PhotoCaptioner
from engine.pictures.picture_batches import read_squares
from engine.types import Caption, Failure, Hit, Photo, Results

CAPTION_BATCH = 16


def write_texts_of(
    photos: Iterable[Photo], size: int, write: Callable[[np.ndarray], list[str]]
) -> Iterator[str | Failure]:
    """Yield a text about each photo, in the order of the photos, or a Failure for one that cannot be read.

    size: side of the square that `write` takes, in pixels. write: returns a text for each uint8 (B, H, W, 3) picture.
    Up to CAPTION_BATCH photos are drawn from `photos` ahead.
    """
    for squares in read_squares((photo.paths for photo in photos), size, CAPTION_BATCH):
        readable = [square for square in squares if not isinstance(square, Failure)]
        texts = iter(write(np.stack(readable)) if readable else ())
        yield from [square if isinstance(square, Failure) else next(texts) for square in squares]


def add_missing_captions(
    results: Results, load: Callable[[], PhotoCaptioner], keeps: Callable[[Caption], bool] = lambda _: True
) -> Results:
    """Return results in which every hit has a caption; photos that cannot be read are added to `failures`.

    load: loads the captioner; it is called only when a caption is missing. keeps: whether a caption of the index stays.
    """
    missing = [hit for hit in results.hits if hit.caption is None or not keeps(hit.caption)]
    if not missing:
        return results
    captioner = load()
    texts = list(write_texts_of((hit.photo for hit in missing), captioner.image_size, captioner.caption))
    captioned: dict[int, Hit] = {}
    for hit, text in zip(missing, texts, strict=True):
        caption = None if isinstance(text, Failure) else Caption(text, captioner.name, captioner.digest)
        captioned[hit.rank] = replace(hit, caption=caption)
    known = {failure.path for failure in results.failures}
    failures = [text for text in texts if isinstance(text, Failure) and text.path not in known]
    hits = tuple(captioned.get(hit.rank, hit) for hit in results.hits)
    return replace(results, hits=hits, failures=(*results.failures, *failures))
