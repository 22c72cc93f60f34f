"""Read a folder of pictures with metadata.jsonl or metadata.csv, as the ImageFolder of Hugging Face has it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.json_files import CAPTION_COLUMNS, parse_captions
from engine.datasets.picture_lookup import find_picture
from engine.errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv")


def read_picture_folder(folder: Path) -> tuple[list[CaptionedPicture], list[str]]:
    """A folder as Hugging Face's ImageFolder has it: pictures, and metadata.jsonl or metadata.csv beside them.

    Its rows hold "file_name" and "text", "caption" or "captions" (a text or a list); rows of one picture are joined.
    Returns the pictures and the names of those that are not there. Raises DataError naming the row that does not fit,
    or when none of the pictures is there.
    """
    path = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has no {' or '.join(METADATA)}, which say what its pictures show.")
    captions: dict[str, tuple[str, ...]] = {}
    for number, row in _metadata_rows(path):
        column = next((name for name in CAPTION_COLUMNS if name in row), None)
        if not isinstance(row.get("file_name"), str) or column is None:
            raise DataError(
                f'{path}, line {number}: a row needs "file_name" and one of {", ".join(CAPTION_COLUMNS)}; '
                f"it has {', '.join(map(str, row)) or 'nothing'}."
            )
        name = row["file_name"]
        captions[name] = captions.get(name, ()) + parse_captions(row[column] or "", path)
    places = {name: find_picture(folder, (name,)) for name in captions}  # this layout knows no other names
    missing = [name for name, place in places.items() if place is None]
    if len(missing) == len(captions):
        raise DataError(
            f"None of the {len(captions)} pictures that {path} names is there (first: {[*missing, ''][0]})."
        )
    pictures = [
        CaptionedPicture(name, place, captions[name]) for name, place in places.items() if place is not None
    ]
    return pictures, missing


def _metadata_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                yield from enumerate(csv.DictReader(file), 2)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{path}, line {number}: {line.strip()[:60]} is no JSON object.")
                    yield number, row
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
