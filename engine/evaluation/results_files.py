"""What a model wrote for each photo or question of a set, as files: results in the official format, and a run's own
file, from which it goes on when it was stopped.

COCO, NoCaps: [{"image_id", "caption"}]. VQAv2, OK-VQA: [{"question_id", "answer"}]. GQA: [{"questionId",
"prediction"}].
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.datasets.captioned_pictures import Id, first_few
from engine.errors import DataError


@dataclass(frozen=True)
class Layout:
    """What the two values of a row are called. what: one row of the set, for messages."""

    id: str
    text: str
    what: str


CAPTIONS = Layout("image_id", "caption", "photo")
ANSWERS = Layout("question_id", "answer", "question")
GQA_ANSWERS = Layout("questionId", "prediction", "question")


def read_predictions(path: Path, ids: Sequence[Id], layout: Layout) -> list[str]:
    """The texts of a results file in the order of `ids`; an id may be a number in the one and a text in the other.

    GQA's may also have the names of `ANSWERS`. Raises DataError: not such a file, and, with counts and the first few:
    ids that come twice, that are not among `ids`, that are missing.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error
    rows = _rows(content, path, layout)
    texts: dict[str, str] = {}
    twice = []
    for id_, text in rows:
        if id_ in texts:
            twice.append(id_)
        texts[id_] = text
    wanted = {str(id_): None for id_ in ids}
    unknown = [id_ for id_ in texts if id_ not in wanted]
    missing = [id_ for id_ in wanted if id_ not in texts]
    wrong = [
        f"{len(found):,} {layout.what}{'s' if len(found) > 1 else ''} {words} ({first_few(found)})"
        for found, words in (
            (missing, f"of the set's {len(wanted):,} without a {layout.text}"),
            (unknown, "that the set does not have"),
            (twice, "more than once"),
        )
        if found
    ]
    if wrong:
        raise DataError(f"{path} does not fit the set, it has {'; '.join(wrong)}.")
    return [texts[str(id_)] for id_ in ids]


def _rows(content: Any, source: Path, layout: Layout) -> list[tuple[str, str]]:
    layouts = (layout, ANSWERS) if layout is GQA_ANSWERS else (layout,)
    if isinstance(content, list) and content:
        for one in layouts:
            if all(
                isinstance(row, dict) and one.id in row and isinstance(row.get(one.text), str)
                for row in content
            ):
                return [(str(row[one.id]), row[one.text]) for row in content]
    raise DataError(
        f'{source} should be a list of {{"{layout.id}": ..., "{layout.text}": "..."}}, one a {layout.what}.'
    )


class Predictions:
    """Texts as they are written. With a path each batch is added to `PATH.part`, from which a stopped run goes on;
    `finish` makes the results file of it.

    run: all that decides the texts. kept: how many of them an earlier run left; replaced: whether what lay there was
    another run's, and is gone. Raises DataError when the path cannot be written.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any], layout: Layout):
        self.path, self.layout = path, layout
        self.texts: dict[Id, str] = {}
        self.kept, self.replaced = 0, False
        if path is None:
            return
        self.part = path.with_name(path.name + ".part")
        header = json.dumps({"run": run}, sort_keys=True)
        rows = self._left(header)
        self.replaced = not rows and self.part.is_file() and self.part.stat().st_size > len(header) + 1
        self.texts, self.kept = dict(rows), len(rows)
        try:
            half = self.part.with_name(self.part.name + ".new")
            half.write_text(
                "".join(line + "\n" for line in [header, *map(json.dumps, rows)]), encoding="utf-8"
            )
            os.replace(half, self.part)  # without the line that a kill cut
        except OSError as error:
            raise DataError(f"{self.part} cannot be written: {error.strerror}") from error

    def _left(self, header: str) -> list[tuple[Id, str]]:
        """The rows that an earlier run of the same header left, whole lines only."""
        try:
            lines = self.part.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"{self.part} cannot be read: {error.strerror}") from error
        if not lines or lines[0] != header:
            return []
        try:
            return [(id_, text) for id_, text in map(json.loads, lines[1:])]
        except (ValueError, TypeError):
            return []

    def add(self, ids: Sequence[Id], texts: Sequence[str]) -> None:
        rows = list(zip(ids, texts, strict=True))
        self.texts.update(rows)
        if self.path is None:
            return
        with open(self.part, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def finish(self, ids: Sequence[Id]) -> None:
        """Write the results file, whole or not at all, in the order of `ids`, and remove the run's own."""
        if self.path is None:
            return
        rows = [{self.layout.id: id_, self.layout.text: self.texts[id_]} for id_ in ids]
        half = self.path.with_name(self.path.name + ".new")
        half.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(half, self.path)
        self.part.unlink()
