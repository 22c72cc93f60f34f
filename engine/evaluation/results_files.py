"""Read and write the texts that a model wrote for the photos or questions of a set.

A results file has the official layout. While a run goes on, its texts are in a file of its own (`PATH.part`), from
which it continues when it was stopped.

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
from engine.datasets.json_files import read_json
from engine.errors import DataError
from engine.wording import count_text

SECONDS_BETWEEN_SYNCS = 5.0


@dataclass(frozen=True)
class Layout:
    """The official layout of a results file.

    id, text: the names under which a row holds the two values.
    noun: what a row stands for, for messages.
    """

    id: str
    text: str
    noun: str


CAPTIONS = Layout("image_id", "caption", "photo")
ANSWERS = Layout("question_id", "answer", "question")
GQA_ANSWERS = Layout("questionId", "prediction", "question")


def read_predictions(path: Path, ids: Sequence[Id], layout: Layout) -> list[str]:
    """Return the texts of a results file in the order of `ids`.

    An id may be a number in the file and a text in `ids`, or the other way round. A file of GQA may also have the names
    of `ANSWERS`. Raise DataError for a file in another layout, and for ids that occur twice, that are not in `ids`, or
    that are missing, with their number and the first few of them.
    """
    rows = _parse_rows(read_json(path), path, layout)
    texts: dict[str, str] = {}
    repeated = []
    for id_, text in rows:
        if id_ in texts:
            repeated.append(id_)
        texts[id_] = text
    set_ids = {str(id_): None for id_ in ids}
    unknown = [id_ for id_ in texts if id_ not in set_ids]
    missing = [id_ for id_ in set_ids if id_ not in texts]
    problems = [
        f"{count_text(len(wrong_ids), layout.noun)} {problem} ({name_first_few(wrong_ids)})"
        for wrong_ids, problem in (
            (missing, f"of the set's {len(set_ids):,} without a {layout.text}"),
            (unknown, "that the set does not have"),
            (repeated, "more than once"),
        )
        if wrong_ids
    ]
    if problems:
        raise DataError(f"{path} does not fit the set, it has {'; '.join(problems)}.")
    return [texts[str(id_)] for id_ in ids]


def _parse_rows(content: Any, path: Path, layout: Layout) -> list[tuple[str, str]]:
    layouts = (layout, ANSWERS) if layout is GQA_ANSWERS else (layout,)
    if isinstance(content, list) and content:
        for accepted in layouts:
            if all(
                isinstance(row, dict) and accepted.id in row and isinstance(row.get(accepted.text), str)
                for row in content
            ):
                return [(str(row[accepted.id]), row[accepted.text]) for row in content]
    raise DataError(
        f'{path} should be a list of {{"{layout.id}": ..., "{layout.text}": "..."}} with one row for each '
        f"{layout.noun}."
    )


class Predictions:
    """The texts of a run, saved as they are written.

    With a path each batch is appended to `PATH.part`, from which a stopped run continues, and `finish` makes the
    results file. A kill loses the batch in work, a power cut also those of the SECONDS_BETWEEN_SYNCS before it.

    texts: the texts by id. num_kept: how many of them an earlier run has written. why_replaced: why an earlier run's
    file cannot be used and is gone; "" where nothing is lost.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any], layout: Layout):
        """Continue the run that left `PATH.part`, or begin a new one.

        path: the results file; None to save nothing. run: plain values by name that together decide the texts; an
        earlier run is continued only when its values are equal. Raise DataError when the path cannot be written.
        """
        self.path, self.layout = path, layout
        self.texts: dict[Id, str] = {}
        self.num_kept, self.why_replaced = 0, ""
        self._synced = time.monotonic()
        if path is None:
            return
        self.part = path.with_name(path.name + ".part")
        rows, self.why_replaced = self._read_earlier_rows(run)
        self.texts, self.num_kept = dict(rows), len(rows)
        header = json.dumps({"run": run}, sort_keys=True)
        try:  # The file is written anew, so that a line that was cut is gone.
            write_file(self.part, "".join(line + "\n" for line in [header, *map(json.dumps, rows)]))
        except OSError as error:
            raise DataError(f"{self.part} cannot be written: {error.strerror}.") from error

    @property
    def replaced(self) -> bool:
        """Return whether the file of an earlier run could not be used and is gone."""
        return bool(self.why_replaced)

    def _read_earlier_rows(self, run: Mapping[str, Any]) -> tuple[list[tuple[Id, str]], str]:
        """Return the rows of a run with the same settings, and why there are none, "" where nothing is lost.

        Rows are read up to the first line that is cut or damaged.
        """
        try:
            content = self.part.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return [], ""
        except OSError as error:
            raise DataError(f"{self.part} cannot be read: {error.strerror}.") from error
        header, *lines = content.split("\n")
        try:
            earlier_run = dict(json.loads(header)["run"])
        except (ValueError, TypeError, KeyError):
            return [], "is damaged" if content else ""
        if differences := compare_settings(earlier_run, run):
            return [], f"was made with other settings ({differences})" if any(lines) else ""
        rows = []
        # Behind the last line break there is nothing, or a line that a kill or a power cut has cut.
        for line in lines[:-1]:
            try:
                id_, text = json.loads(line)
            except (ValueError, TypeError):
                break
            rows.append((id_, text))
        return rows, ""

    def add(self, ids: Sequence[Id], texts: Sequence[str]) -> None:
        """Add the texts of a batch, and append them to `PATH.part`."""
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
        """Write the results file, whole or not at all, in the order of `ids`, and remove `PATH.part`."""
        if self.path is None:
            return
        rows = [{self.layout.id: id_, self.layout.text: self.texts[id_]} for id_ in ids]
        write_file(self.path, json.dumps(rows, ensure_ascii=False) + "\n")
        self.part.unlink()


def compare_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the settings in which two runs differ, with the values of both, and "" where all are equal.

    A training run is refused in the same words (`training.loop.run_checkpoint.check_same_settings`).
    """
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return "; ".join(f"{name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in names)
