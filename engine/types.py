"""Values that cross folder borders. Frozen, and free of torch, so that importing them costs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

RERANKED = 128
"""Candidates that ITM reads unless somebody asks for another number: k in BLIP-2, section 4.4."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One distinct picture, known by its content.

    id: its number in the index, also its FAISS id, >= 0. digest: hex blake2b-128 of the file's bytes.
    width, height: pixels of the upright picture. paths: every place it lies at and is not missing
    from, absolute, sorted; empty when all of them are gone.
    """

    id: int
    digest: str
    width: int
    height: int
    paths: tuple[Path, ...]

    @property
    def path(self) -> Path:
        return self.paths[0]


@dataclass(frozen=True, slots=True)
class Caption:
    """What a model wrote of a photo. writer, writer_digest: which checkpoint."""

    text: str
    writer: str
    writer_digest: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A photo that answers a query. Higher is better everywhere.

    rank: from 1. itc: cosine in [-1, 1], the maximum over the queries (photo-to-photo: the mean over the
    slots). itm: match probability in [0, 1], None when not reranked. score: what the order was made
    with: `itm_logit + itc` after reranking (BLIP-2, section 4.4 and LAVIS' evaluation), else `itc`; what ITM was to
    read and could not, and what lies beyond the reranked, has `itc - 1000` and so stays behind. A
    caption's cosine is added where it was asked for. caption: the index's, None where it keeps none.
    """

    rank: int
    photo: Photo
    score: float
    itc: float
    itm: float | None = None
    caption: Caption | None = None


@dataclass(frozen=True, slots=True)
class TextHit:
    """A text that fits a photo; the numbers mean what they mean in `Hit`."""

    rank: int
    text: str
    score: float
    itc: float
    itm: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A photo that could not be read, and why, in words for a person."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Results:
    """What a search gave.

    hits: best first. notes: what the person should know ("the text was cut to 32 tokens").
    failures: photos that could not be read. seconds: wall time by phase (encode, retrieve, rerank).
    """

    hits: tuple[Hit, ...]
    notes: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextResults:
    """What photo-to-text gave; see `Results`."""

    hits: tuple[TextHit, ...]
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
