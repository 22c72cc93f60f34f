"""Write values as text: sizes, durations, probabilities, tables, JSON lines, and names that are safe to print.

A path on disk is bytes and may hold a newline, an escape sequence or bytes that are not UTF-8. `printable_text` writes
such bytes as `\\xff`; `path_fields` gives JSON both a readable form and the exact bytes.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def duration_text(seconds: float) -> str:
    """Return a duration such as "8 s", "2 min 05 s" or "3 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def markdown_text(name: str) -> str:
    """Escape a text, such as a file name, so that Markdown shows it as it is."""
    return "".join(
        f"\\{letter}" if letter in r"\`*_{}[]()<>#+-.!|~$:" else letter for letter in printable_text(name)
    )


def printable_text(text: str) -> str:
    """Return a text on one line, safe for a terminal and for UTF-8.

    A control character becomes `\\n` or `\\x1b`, a byte that was not UTF-8 becomes `\\xff`.
    """
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that os.fsdecode could not read (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def percent_text(probability: float | None) -> str:
    """Return a probability in per cent such as "93%", and "-" for None.

    Near 0 and 1 there is one decimal, so that 99.7% does not look certain; "100%" and "0%" stand only for
    probabilities that are this at one decimal.
    """
    if probability is None:
        return "-"
    value = 100 * probability
    return f"{value:.1f}%" if 99 <= value < 99.95 or 0.05 <= value < 1 else f"{value:.0f}%"


def size_text(num_bytes: int) -> str:
    """Return a number of bytes in powers of 1000, as disks are sold: "512 B", "16.4 KB", "1.2 GB"."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    value, units = num_bytes / 1000, ["KB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f} {units[0]}"


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose columns are aligned to the right, the last one as it is; it ends with a newline."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header) - 1)]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        lines.append("  ".join([*padded, row[-1]]).rstrip())
    return "\n".join(lines) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown. header: the headings of all columns but the first, which has none."""
    lines = [f"| | {' | '.join(header)} |", f"|---|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def seconds_text(seconds: Mapping[str, float]) -> str:
    """Return how long each phase of a run took, such as "photos 1.2 s, texts 0.3 s"."""
    return ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())


def path_fields(path: Path) -> dict[str, str]:
    """Return a path for JSON: `path`, which is valid Unicode, and where that is not exact `path_base64`, the bytes."""
    name = str(path)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        readable = os.fsencode(path).decode("utf-8", errors="backslashreplace")
        return {"path": readable, "path_base64": base64.b64encode(os.fsencode(path)).decode("ascii")}
    return {"path": name}


def json_line(fields: dict) -> str:
    """Return an object as JSON on one line. Raises ValueError for a number that is NaN or infinite."""
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"
