"""Read a file for indexing: its digest, the size of its picture, and the squashed pixels.

Worker processes import this module, so it must not import torch or lancedb.
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
    """A file that was read and decoded.

    digest: the blake2b-128 of the file's bytes in hexadecimal. width, height: size of the upright picture in pixels,
    before it was squashed. pixels: uint8 (image_size, image_size, 3), RGB.
    """

    digest: str
    width: int
    height: int
    pixels: np.ndarray


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """A file to read. known: digests of photos whose vectors are stored; a file with one of them is not decoded."""

    path: Path
    known: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Known:
    """A file that was read and not decoded, because it holds a photo of `DecodeJob.known`."""

    digest: str


Outcome = Decoded | Known | PhotoError


def decode_jobs(jobs: list[DecodeJob], image_size: int) -> list[Outcome]:
    """Read several files and return an outcome for each; a PhotoError is returned and not raised."""
    outcomes: list[Outcome] = []
    for job in jobs:
        try:
            outcomes.append(_read(job, image_size))
        except PhotoError as error:
            outcomes.append(error)
    return outcomes


def decode(path: Path, image_size: int, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Read one photo and squash it to the square that the encoder reads.

    image_size: side of the square in pixels. max_pixels: a picture of so many pixels or more is refused before it is
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
    # The JPEG decoder scales down to no less than twice the size, as PIL.Image.thumbnail does, to cost no sharpness.
    picture, width, height = open_bytes(data, job.path.suffix.lower(), max_pixels, 2 * image_size)
    return Decoded(digest, width, height, squash(picture, image_size))
