"""The pictures of captioned sets: one picture with its captions, one sample of training, one task of an evaluation.

Every reader in this folder returns these types, whatever the files look like. `plain_caption` rewrites a caption as
LAVIS gives it to language models, and `data_digest` tells whether two runs read the same pictures and captions.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from engine.errors import DataError

_DROPPED = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))


@dataclass(frozen=True)
class CaptionedPicture:
    """One picture and its captions (none for uncaptioned ones). picture: the file's bytes, or where it lies. label: of
    the class it shows, empty where none is known."""

    key: str
    picture: bytes | Path
    captions: tuple[str, ...] = ()
    label: str = ""


def normalise_caption(text: str, max_words: int = 50) -> str:
    """A caption as LAVIS gives it to language models: lower case, without full stops, quotes, brackets and their like,
    single spaces, `max_words` at most (its `BlipCaptionProcessor`)."""
    return " ".join(text.lower().translate(_DROPPED).split()[:max_words])


def compute_data_digest(samples: Sequence[CaptionedPicture]) -> str:
    """Hex digest of names, captions and pictures: the bytes of those in memory, size and time of files."""
    state = hashlib.blake2b(digest_size=16)
    for sample in samples:
        if isinstance(sample.picture, Path):
            facts = sample.picture.stat()
            what = f"{facts.st_size} {facts.st_mtime_ns}".encode()
        else:
            what = hashlib.blake2b(sample.picture).digest()
        state.update(json.dumps([sample.key, *sample.captions]).encode() + what)
    return state.hexdigest()


@dataclass(frozen=True)
class Sample:
    """One picture and the captions of which one is drawn. picture_id: equal for samples that show the same photo.
    question: what the captions answer, empty where nothing is asked."""

    pair: CaptionedPicture
    picture_id: int
    question: str = ""


@dataclass(frozen=True)
class CaptionItem:
    """A picture of a set. id: what the set calls it in its results. names: where it may lie below the folder of
    pictures. references: people's captions, none of a set whose captions are kept back. domain: NoCaps'."""

    id: Id
    names: tuple[str, ...]
    references: tuple[str, ...] = ()
    domain: str = ""
    picture: bytes | Path | None = None


@dataclass(frozen=True)
class QuestionItem:
    """A question about a picture. answers: people's, none where they are kept back. kinds: of question and answer, by
    which accuracy is told apart. The rest as of `CaptionTask`."""

    id: Id
    names: tuple[str, ...]
    question: str
    answers: tuple[str, ...] = ()
    kinds: dict[str, str] = field(default_factory=dict)
    picture: bytes | Path | None = None


def check_unique(ids: Sequence[Id], what: str, source: Path) -> None:
    if twice := [id_ for id_, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{source} names {len(twice):,} {what}s more than once ({name_first_few(twice)}).")


Item = TypeVar("Item", CaptionItem, QuestionItem)


Id = int | str


def name_first_few(ids: Iterable[Id]) -> str:
    """For a message: "the first is 42", "the first are 42, 57, 60"."""
    shown = [str(id_) for id_, _ in zip(ids, range(3), strict=False)]
    return f"the first {'is' if len(shown) == 1 else 'are'} {', '.join(shown)}"
