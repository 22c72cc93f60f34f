"""Read and write JSON files, and check the captions, labels and ids in them. Every error says which file is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.atomic import write_file
from engine.datasets.captioned_pictures import Id
from engine.errors import DataError


def read_json(path: Path) -> Any:
    """Raises DataError for a file that is not there or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error


def parse_captions(value: Any, source: Path | str) -> tuple[str, ...]:
    """A text or a list of texts, empty ones left out. Raises DataError for anything else, naming the source."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise DataError(f"{source}: captions should be a text or a list of texts, not {value!r}.")
    return tuple(t for t in texts if t.strip())


def parse_label(facts: Mapping[str, Any]) -> str:
    """The class's name, empty where there is none or only its number."""
    label = facts.get("label", "")
    return label.strip() if isinstance(label, str) else ""


CAPTION_COLUMNS = ("text", "caption", "captions")


def parse_id(value: object) -> Id:
    if not isinstance(value, int | str):
        raise TypeError(f"an id is {value!r}")
    return value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file that is there whole or not at all."""
    write_file(path, json.dumps(content, indent=1) + "\n")
