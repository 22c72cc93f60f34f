"""Hits as a person or a program reads them: a table, JSON lines, paths, NUL-separated paths.

A path on disk is bytes, and may hold a newline, an escape sequence or bytes that are no UTF-8. The path modes
give exactly those bytes; the table and JSON never do: there such bytes are written as `\\xff`.
"""

import base64
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.types import Failure, Hit, TextHit


def printable(text: str) -> str:
    """The text on one line, safe for a terminal and for UTF-8: a control character becomes `\\n` or `\\x1b`,
    a byte that was no UTF-8 becomes `\\xff`."""
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that os.fsdecode could not read (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def percent(probability: float | None) -> str:
    """A probability as whole per cent, `-` when there is none; 100% and 0% are kept for what rounds to them
    at one tenth, so that 99.7% does not read as certain."""
    if probability is None:
        return "-"
    value = 100 * probability
    return f"{value:.1f}%" if 99 <= value < 99.95 or 0.05 <= value < 1 else f"{value:.0f}%"


def size_text(num_bytes: int) -> str:
    """Bytes in powers of 1000, as disks are sold: `512 B`, `16.4 KB`, `1.2 GB`."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    value, units = num_bytes / 1000, ["KB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f} {units[0]}"


def count_text(number: int, one: str, many: str | None = None) -> str:
    """`1 photo`, `1,000 photos`; `many` where the plural is not `one` + s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns padded to their widest cell, to the right, the last as it is; ends with a newline."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header) - 1)]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        lines.append("  ".join([*padded, row[-1]]).rstrip())
    return "\n".join(lines) + "\n"


def hits_table(hits: Sequence[Hit], captions: bool = False) -> str:
    """Rank, match probability, cosine, path; more places of the same photo are counted behind it. captions: a line
    with its caption below each that has one."""
    rows = [
        (str(hit.rank), percent(hit.itm), f"{hit.itc:.3f}", printable(str(hit.photo.path)) + _copies(hit))
        for hit in hits
    ]
    table = text_table(("#", "match", "cosine", "photo"), rows)
    if not captions:
        return table
    header, *lines = table.splitlines()
    indent = " " * header.index("photo")
    below = [f"\n{indent}{printable(hit.caption.text)}" if hit.caption else "" for hit in hits]
    return "\n".join([header, *map("".join, zip(lines, below, strict=True))]) + "\n"


def _copies(hit: Hit) -> str:
    num_others = len(hit.photo.paths) - 1
    return f"  (+{count_text(num_others, 'copy', 'copies')})" if num_others else ""


def text_hits_table(hits: Sequence[TextHit]) -> str:
    rows = [(str(hit.rank), percent(hit.itm), f"{hit.itc:.3f}", printable(hit.text)) for hit in hits]
    return text_table(("#", "match", "cosine", "text"), rows)


def path_fields(path: Path) -> dict[str, str]:
    """`path`, always valid Unicode; for a name that is no UTF-8 also `path_base64`, its exact bytes."""
    name = str(path)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        readable = os.fsencode(path).decode("utf-8", errors="backslashreplace")
        return {"path": readable, "path_base64": base64.b64encode(os.fsencode(path)).decode("ascii")}
    return {"path": name}


def json_line(fields: dict) -> str:
    """One object on one line; never NaN, never a lone surrogate."""
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"


def _scores(hit: Hit | TextHit) -> dict[str, float | None]:
    itm = None if hit.itm is None else round(float(hit.itm), 6)
    return {"score": round(float(hit.score), 6), "itc": round(float(hit.itc), 6), "itm": itm}


def hits_json(hits: Sequence[Hit]) -> str:
    """One object a line: rank, path, score, itc, itm (null when not reranked), path_base64 for odd names, caption where
    there is one."""
    lines = []
    for hit in hits:
        names = path_fields(hit.photo.path)
        fields = {"rank": hit.rank, "path": names.pop("path"), **_scores(hit), **names}
        lines.append(json_line(fields if hit.caption is None else {**fields, "caption": hit.caption.text}))
    return "".join(lines)


def text_hits_json(hits: Sequence[TextHit]) -> str:
    return "".join(json_line({"rank": hit.rank, "text": hit.text, **_scores(hit)}) for hit in hits)


def path_bytes(paths: Iterable[Path], end: bytes = b"\n") -> bytes:
    """The paths as the disk has them, each closed by `end`."""
    return b"".join(os.fsencode(path) + end for path in paths)


def failures_table(failures: Sequence[Failure]) -> str:
    """`path: reason`, one a line, as compilers and grep say it."""
    return "".join(f"{printable(str(one.path))}: {printable(one.reason)}\n" for one in failures)


def failures_json(failures: Sequence[Failure]) -> str:
    lines = []
    for one in failures:
        names = path_fields(one.path)
        lines.append(json_line({"path": names.pop("path"), "reason": one.reason, **names}))
    return "".join(lines)
