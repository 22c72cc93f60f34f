"""What a person gives, checked: the text of a query, files of texts, lists of paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from engine.errors import DataError, QueryError
from ui.reports.text_forms import printable_text


def make_absolute(path: Path) -> Path:
    """As the index has it: from the root, `..` resolved by name, links kept."""
    return Path(os.path.abspath(path.expanduser()))


def check_text(text: str) -> str:
    """Raises QueryError for an argument whose bytes are no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise QueryError(f"The text {printable_text(text)} is not valid UTF-8.") from None
    if not text.strip():
        raise QueryError("The text is empty. Write what the photo shows.")
    return text


def read_texts(file: BinaryIO) -> list[str]:
    """The lines that are not blank; raises DataError where they are no UTF-8 or where there are none."""
    texts = []
    for number, line in enumerate(file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"Line {number} of {_name(file)} is not UTF-8: {error.reason}.") from None
        if text:
            texts.append(text)
    if not texts:
        raise DataError(f"{_name(file)} holds no text; one a line is expected.")
    return texts


def read_paths(file: BinaryIO, separator: bytes) -> list[Path]:
    """Absolute paths, empty ones left out; raises DataError where there are none."""
    ending = b"\r" if separator == b"\n" else b""
    names = [name.removesuffix(ending) for name in file.read().split(separator)]
    paths = [make_absolute(Path(os.fsdecode(name))) for name in names if name]
    if not paths:
        raise DataError(f"{_name(file)} names no photo; one path a line is expected.")
    return paths


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", "<stdin>"))
