"""Define the values that rooms hand to each other; they are frozen and need no torch, so that importing them is
cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

RERANKED = 128
"""Number of candidates that ITM reads unless somebody asks for another: k in BLIP-2, section 4.4."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo in an index, known by its content; several files with the same bytes are one photo.

    id: its number in the index and in FAISS, 0 or more. digest: the blake2b-128 of the file's bytes in hexadecimal.
    width, height: size of the upright picture in pixels. paths: the absolute paths of all its files that are not
    missing, sorted; empty when all of them are gone.
    """

    id: int
    digest: str
    width: int
    height: int
    paths: tuple[Path, ...]

    @property
    def path(self) -> Path:
        """Return the first of the photo's paths. Raises IndexError when all its files are gone."""
        return self.paths[0]


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption that a model wrote about a photo. writer, writer_digest: name and digest of that model."""

    text: str
    writer: str
    writer_digest: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A photo that a search brings. Higher numbers are better everywhere.

    rank: its place, from 1. itc: the cosine in [-1, 1], the maximum over the photo's vectors (between two photos the
    mean over the slots). itm: the probability of a match in [0, 1], None when the photo was not reranked. score: the
    number that hits are ordered by. It is `match_weight * itm_logit + itc` for a reranked photo (BLIP-2, section 4.4,
    and LAVIS' evaluation), `itc - 1000` for a photo that stays behind the reranked ones, and `itc` without reranking;
    the cosine of the caption is added where it was asked for. caption: the caption in the index, None where there is
    none.
    """

    rank: int
    photo: Photo
    score: float
    itc: float
    itm: float | None = None
    caption: Caption | None = None


@dataclass(frozen=True, slots=True)
class TextHit:
    """A text that fits a photo. rank, score, itc, itm: see `Hit`."""

    rank: int
    text: str
    score: float
    itc: float
    itm: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A photo file that could not be read. reason: why, in words for a person."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Results:
    """The result of a search for photos.

    hits: the best first. notes: sentences that the person should read, such as "The text was cut to 32 tokens."
    failures: photos that could not be read. seconds: wall time of each phase (encode, retrieve, rerank).
    """

    hits: tuple[Hit, ...]
    notes: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextResults:
    """The result of a search for the texts that fit a photo. hits, notes, seconds: see `Results`."""

    hits: tuple[TextHit, ...]
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
