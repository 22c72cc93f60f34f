"""Read a folder of pictures with metadata.jsonl or metadata.csv, the layout of Hugging Face's ImageFolder."""

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
    """Read the captioned pictures of a folder that holds pictures and, beside them, metadata.jsonl or metadata.csv.

    Each row of the metadata holds "file_name" and one of "text", "caption" and "captions" (a text or a list of texts);
    rows of one picture are joined. Return the pictures, and the names of the pictures that are missing. Raise DataError
    for a folder without metadata, for a row that does not fit, which is named, and when every picture is missing.
    """
    path = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has no {' or '.join(METADATA)}, which say what its pictures show.")
    captions: dict[str, tuple[str, ...]] = {}
    for number, row in _read_metadata(path):
        column = next((name for name in CAPTION_COLUMNS if name in row), None)
        if not isinstance(row.get("file_name"), str) or column is None:
            raise DataError(
                f'{path}, line {number}: a row needs "file_name" and one of {", ".join(CAPTION_COLUMNS)}; '
                f"it has {', '.join(map(str, row)) or 'nothing'}."
            )
        name = row["file_name"]
        captions[name] = captions.get(name, ()) + parse_captions(row[column] or "", path)
    # This layout knows no other names of a picture than the one in its row.
    picture_paths = {name: find_picture(folder, (name,)) for name in captions}
    missing = [name for name, picture in picture_paths.items() if picture is None]
    if len(missing) == len(captions):
        raise DataError(
            f"None of the {len(captions)} pictures that {path} names is there (the first is {[*missing, ''][0]})."
        )
    pictures = [
        CaptionedPicture(name, picture, captions[name])
        for name, picture in picture_paths.items()
        if picture is not None
    ]
    return pictures, missing


def _read_metadata(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row of a metadata file with its line number, from 1; the heading of a CSV file is line 1."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                yield from enumerate(csv.DictReader(file), 2)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{path}, line {number}: {line.strip()[:60]} is not a JSON object.")
                    yield number, row
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
