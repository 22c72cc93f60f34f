"""Read and check what a person gives to a command: texts, files of texts, lists of paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from engine.errors import DataError, QueryError
from ui.reports.text_forms import printable_text

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def make_absolute(path: Path) -> Path:
    """Return a path as the index spells it: absolute, with `~` and `..` resolved by name, and symbolic links kept."""
    return Path(os.path.abspath(path.expanduser()))


def check_text(text: str, noun: str = "text", advice: str = "Write what the photo shows.") -> str:
    """Return a text that a person typed. Raises QueryError when it is empty or its bytes are not UTF-8.

    noun: what the message calls the text. advice: a sentence that says what to write instead of an empty text.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise QueryError(f"The {noun} {printable_text(text)} is not valid UTF-8. Type it again.") from None
    if not text.strip():
        raise QueryError(f"The {noun} is empty. {advice}")
    return text


def read_texts(file: BinaryIO) -> list[str]:
    """Read the lines of a file that are not blank. Raises DataError when there is none, or one is not UTF-8."""
    texts = []
    for number, line in enumerate(file.read().removeprefix(BYTE_ORDER_MARK).split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"Line {number} of {_get_name(file)} is not valid UTF-8: {error.reason}. Save the file as UTF-8."
            ) from None
        if text:
            texts.append(text)
    if not texts:
        raise DataError(f"{_get_name(file)} holds no text. Write one text on each line.")
    return texts


def read_paths(file: BinaryIO, separator: bytes) -> list[Path]:
    """Read the paths of a file and make them absolute; empty ones are left out. Raises DataError when there is none.

    separator: the byte that ends each path, a newline or NUL. A newline may have a carriage return before it.
    """
    ending = b"\r" if separator == b"\n" else b""
    names = [name.removesuffix(ending) for name in file.read().split(separator)]
    paths = [make_absolute(Path(os.fsdecode(name))) for name in names if name]
    if not paths:
        form = "End each path with a NUL byte." if separator == b"\0" else "Write one path on each line."
        raise DataError(f"{_get_name(file)} names no photo. {form}")
    return paths


def _get_name(file: BinaryIO) -> str:
    return str(getattr(file, "name", "<stdin>"))
