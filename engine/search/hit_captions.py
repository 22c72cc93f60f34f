"""Captions of photos wherever they lie: read in threads, written in batches.

Shapes: B photos, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from engine.models.photo_captioners import PhotoCaptioner
from engine.pictures.picture_batches import read_squares
from engine.types import Caption, Failure, Hit, Photo, Results

PHOTOS_AT_ONCE = 16


def write_of(
    photos: Iterable[Photo], size: int, write: Callable[[np.ndarray], list[str]]
) -> Iterator[str | Failure]:
    """A text of each photo in their order, or why it cannot be read.

    size: pixels of the square that `write` takes, uint8 (B, H, W, 3). So many photos as are written at once are drawn
    from `photos` ahead.
    """
    for squares in read_squares((photo.paths for photo in photos), size, PHOTOS_AT_ONCE):
        readable = [square for square in squares if not isinstance(square, Failure)]
        texts = iter(write(np.stack(readable)) if readable else ())
        yield from [square if isinstance(square, Failure) else next(texts) for square in squares]


def with_captions(
    results: Results, load: Callable[[], PhotoCaptioner], keeps: Callable[[Caption], bool] = lambda _: True
) -> Results:
    """The same hits with a caption each; photos that cannot be read are added to `failures`.

    load: called when one is missing. keeps: whether a caption of the index may stay.
    """
    missing = [hit for hit in results.hits if hit.caption is None or not keeps(hit.caption)]
    if not missing:
        return results
    writer = load()
    texts = list(write_of((hit.photo for hit in missing), writer.image_size, writer.caption))
    made: dict[int, Hit] = {}
    for hit, text in zip(missing, texts, strict=True):
        caption = None if isinstance(text, Failure) else Caption(text, writer.name, writer.digest)
        made[hit.rank] = replace(hit, caption=caption)
    known = {failure.path for failure in results.failures}
    failures = [text for text in texts if isinstance(text, Failure) and text.path not in known]
    hits = tuple(made.get(hit.rank, hit) for hit in results.hits)
    return replace(results, hits=hits, failures=(*results.failures, *failures))
