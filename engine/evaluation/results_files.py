"""What a model wrote for each photo or question of a set, as files: results in the official format, and a run's own
file, from which it goes on when it was stopped.

COCO, NoCaps: [{"image_id", "caption"}]. VQAv2, OK-VQA: [{"question_id", "answer"}]. GQA: [{"questionId",
"prediction"}].
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.atomic import write_file
from engine.datasets.captioned_pictures import Id, name_first_few
from engine.errors import DataError
from engine.wording import count_text

SECONDS_BETWEEN_SYNCS = 5.0


@dataclass(frozen=True)
class Layout:
    """What the two values of a row are called. what: one row of the set, for messages."""

    id: str
    text: str
    noun: str


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
        f"{count_text(len(ids_), layout.noun)} {words} ({name_first_few(ids_)})"
        for ids_, words in (
            (missing, f"of the set's {len(wanted):,} without a {layout.text}"),
            (unknown, "that the set does not have"),
            (twice, "more than once"),
        )
        if ids_
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
        f'{source} should be a list of {{"{layout.id}": ..., "{layout.text}": "..."}}, one a {layout.noun}.'
    )


class Predictions:
    """Texts as they are written. With a path each batch is added to `PATH.part`, from which a stopped run goes on;
    `finish` makes the results file of it. A kill loses the batch at hand, a power cut also what was added in the
    SECONDS_BETWEEN_SYNCS before it.

    run: all that decides the texts, plain values by name. kept: how many of them an earlier run left. why_replaced:
    why what lay there cannot be used and is gone, "" where nothing is lost. Raises DataError when the path cannot be
    written.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any], layout: Layout):
        self.path, self.layout = path, layout
        self.texts: dict[Id, str] = {}
        self.num_kept, self.why_replaced = 0, ""
        self._synced = time.monotonic()
        if path is None:
            return
        self.part = path.with_name(path.name + ".part")
        rows, self.why_replaced = self._rows_left(run)
        self.texts, self.num_kept = dict(rows), len(rows)
        header = json.dumps({"run": run}, sort_keys=True)
        try:  # anew, without a line that was cut
            write_file(self.part, "".join(line + "\n" for line in [header, *map(json.dumps, rows)]))
        except OSError as error:
            raise DataError(f"{self.part} cannot be written: {error.strerror}") from error

    @property
    def replaced(self) -> bool:
        """Whether what lay there is gone."""
        return bool(self.why_replaced)

    def _rows_left(self, run: Mapping[str, Any]) -> tuple[list[tuple[Id, str]], str]:
        """Return what a run with the same settings left, up to the first line that is cut or damaged; else why not."""
        try:
            content = self.part.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return [], ""
        except OSError as error:
            raise DataError(f"{self.part} cannot be read: {error.strerror}") from error
        header, *lines = content.split("\n")
        try:
            run_before = dict(json.loads(header)["run"])
        except (ValueError, TypeError, KeyError):
            return [], "is damaged" if content else ""
        if differing := compare_settings(run_before, run):
            return [], f"was made with other settings ({differing})" if any(lines) else ""
        rows = []
        for line in lines[
            :-1
        ]:  # behind the last line break stands nothing, or a line that a kill or a power cut cut
            try:
                id_, text = json.loads(line)
            except (ValueError, TypeError):
                break
            rows.append((id_, text))
        return rows, ""

    def add(self, ids: Sequence[Id], texts: Sequence[str]) -> None:
        rows = list(zip(ids, texts, strict=True))
        self.texts.update(rows)
        if self.path is None:
            return
        with open(self.part, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
                file.flush()
                os.fsync(file.fileno())
                self._synced = time.monotonic()

    def finish(self, ids: Sequence[Id]) -> None:
        """Write the results file, whole or not at all, in the order of `ids`, and remove the run's own."""
        if self.path is None:
            return
        rows = [{self.layout.id: id_, self.layout.text: self.texts[id_]} for id_ in ids]
        write_file(self.path, json.dumps(rows, ensure_ascii=False) + "\n")
        self.part.unlink()


def compare_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the settings that two runs do not share, with the values of both, and "" where they share all.

    The words are those with which a training run is refused (`training.loop.run_checkpoint.check_same_settings`).
    """
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return "; ".join(f"{name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in names)
