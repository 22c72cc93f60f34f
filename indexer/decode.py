"""One file of a folder becomes what indexing needs of it: a digest, a size, the squashed pixels.

Worker processes import this module: it must stay free of torch and lancedb.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import PhotoError
from engine.pictures.opening import MAX_PIXELS, open_bytes, read_bytes
from engine.pictures.squares import squash


@dataclass(frozen=True, slots=True)
class Decoded:
    """digest: hex blake2b-128 of the file's bytes. width, height: of the upright picture, before squashing.
    pixels: (image_size, image_size, 3) uint8, RGB."""

    digest: str
    width: int
    height: int
    pixels: np.ndarray


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """A file to read. known: digests of photos of this size whose vectors are there already."""

    path: Path
    known: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Known:
    """The file holds a photo of `DecodeJob.known`, so it was not decoded."""

    digest: str


Outcome = Decoded | Known | PhotoError


def attempt(jobs: list[DecodeJob], image_size: int) -> list[Outcome]:
    """Read several files; a failure takes the place of its result and is not raised."""
    outcomes: list[Outcome] = []
    for job in jobs:
        try:
            outcomes.append(_read(job, image_size))
        except PhotoError as error:
            outcomes.append(error)
    return outcomes


def decode(path: Path, image_size: int, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Read one photo and squash it to the square that the encoder takes.

    image_size: pixels of a side. max_pixels: a picture of so many pixels or more is refused before it is
    decoded. Raises PhotoError with the reason alone.
    """
    outcome = _read(DecodeJob(path), image_size, max_pixels)
    assert isinstance(outcome, Decoded)
    return outcome


def _read(job: DecodeJob, image_size: int, max_pixels: int = MAX_PIXELS) -> Decoded | Known:
    data = read_bytes(job.path)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    if digest in job.known:
        return Known(digest)
    # twice the size, as PIL.Image.thumbnail does: scaling in the JPEG decoder must not cost sharpness
    picture, width, height = open_bytes(data, job.path.suffix.lower(), max_pixels, 2 * image_size)
    return Decoded(digest, width, height, squash(picture, image_size))
