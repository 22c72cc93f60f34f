"""Hold what a set consists of: pictures with captions, samples of training, and items of an evaluation.

Every reader in this folder returns these types, whatever the files look like. `normalise_caption` rewrites a caption
as LAVIS gives it to language models, and `compute_data_digest` tells whether two runs read the same pictures and
captions.
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
from engine.wording import count_text

Id = int | str
"""Type of the name of a picture or a question in the results of a set: a number or a text."""

_DROPPED = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture with its captions.

    key: its name in the set.
    picture: the bytes of the picture's file, or the path of that file.
    captions: none for a picture that has no captions.
    label: the name of the class that the picture shows, empty where it is not known.
    """

    key: str
    picture: bytes | Path
    captions: tuple[str, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Sample:
    """A training example: a picture, and captions of which training draws one each time.

    picture_id: equal for the samples that show the same picture.
    question: the question that the captions answer, empty where nothing is asked.
    """

    pair: CaptionedPicture
    picture_id: int
    question: str = ""


@dataclass(frozen=True)
class CaptionItem:
    """A picture of an evaluation, for which a model writes a caption.

    id: how the set names the picture in its results.
    names: paths below the folder of pictures at which the picture may be, the most likely first.
    references: people's captions, none where the set does not publish them.
    domain: the domain in which NoCaps puts the picture, empty for other sets.
    picture: the bytes of its file or the file's path, None as long as it has not been looked for.
    """

    id: Id
    names: tuple[str, ...]
    references: tuple[str, ...] = ()
    domain: str = ""
    picture: bytes | Path | None = None


@dataclass(frozen=True)
class QuestionItem:
    """A question about a picture, which a model answers.

    id: how the set names the question in its results.
    names: paths below the folder of pictures at which the picture may be, the most likely first.
    answers: people's answers, none where the set does not publish them.
    kinds: value by kind, such as {"answer type": "yes/no"}; accuracy is also reported for each value.
    picture: the bytes of its file or the file's path, None as long as it has not been looked for.
    """

    id: Id
    names: tuple[str, ...]
    question: str
    answers: tuple[str, ...] = ()
    kinds: dict[str, str] = field(default_factory=dict)
    picture: bytes | Path | None = None


Item = TypeVar("Item", CaptionItem, QuestionItem)


def normalise_caption(text: str, max_words: int = 50) -> str:
    """Return a caption as LAVIS gives it to language models (its `BlipCaptionProcessor`).

    The result is in lower case, with single spaces, without full stops, quotes, brackets and similar marks, and has
    `max_words` words at most.
    """
    return " ".join(text.lower().translate(_DROPPED).split()[:max_words])


def compute_data_digest(pictures: Sequence[CaptionedPicture]) -> str:
    """Return a hex digest of the names, captions and pictures of a set.

    A picture in memory enters with its bytes, a file with its size and its time of modification.
    """
    state = hashlib.blake2b(digest_size=16)
    for picture in pictures:
        if isinstance(picture.picture, Path):
            status = picture.picture.stat()
            identity = f"{status.st_size} {status.st_mtime_ns}".encode()
        else:
            identity = hashlib.blake2b(picture.picture).digest()
        state.update(json.dumps([picture.key, *picture.captions]).encode() + identity)
    return state.hexdigest()


def check_unique(ids: Sequence[Id], noun: str, path: Path) -> None:
    """Raise DataError when an id occurs more than once in a file; noun: what the ids name, for the message."""
    if repeated := [id_ for id_, count in Counter(ids).items() if count > 1]:
        raise DataError(
            f"{path} names {count_text(len(repeated), noun)} more than once ({name_first_few(repeated)})."
        )


def name_first_few(ids: Iterable[Id]) -> str:
    """Return the first three ids for a message: "the first is 42", "the first are 42, 57, 60"."""
    first = [str(id_) for id_, _ in zip(ids, range(3), strict=False)]
    return f"the first {'is' if len(first) == 1 else 'are'} {', '.join(first)}"
