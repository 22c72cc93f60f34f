"""Read and write JSON files, and check the captions, labels and ids in them. Every error says which file is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.atomic import write_file
from engine.datasets.captioned_pictures import Id
from engine.errors import DataError

CAPTION_COLUMNS = ("text", "caption", "captions")
"""Names under which a row may hold its captions."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raise DataError for a file that is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{path} is not readable JSON: {error}.") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file that is there whole or not at all."""
    write_file(path, json.dumps(content, indent=1) + "\n")


def parse_captions(value: Any, described_as: Path | str) -> tuple[str, ...]:
    """Return the captions in a text or a list of texts, without the empty ones.

    Raise DataError for any other value. described_as: the file or sample that holds the value, for the message.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{described_as}: captions should be a text or a list of texts, not {value!r}.")
    return tuple(text for text in texts if text.strip())


def parse_label(fields: Mapping[str, Any]) -> str:
    """Return the class name in a row's "label", empty where there is none or where it is only a number."""
    label = fields.get("label", "")
    return label.strip() if isinstance(label, str) else ""


def parse_id(value: object) -> Id:
    """Return an id that is a number or a text. Raise TypeError for anything else."""
    if not isinstance(value, int | str):
        raise TypeError(f"{value!r} is not an id; it should be a number or a text.")
    return value
