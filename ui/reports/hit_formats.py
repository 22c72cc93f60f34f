"""Hits as a person or a program reads them: a table, JSON lines, paths, NUL-separated paths.

A path on disk is bytes, and may hold a newline, an escape sequence or bytes that are no UTF-8. The path modes
give exactly those bytes; the table and JSON never do: there such bytes are written as `\\xff`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.types import Failure, Hit, TextHit
from engine.wording import count_text
from ui.reports.text_forms import json_line, path_fields, percent_text, printable_text, text_table


def format_hits_table(hits: Sequence[Hit], captions: bool = False) -> str:
    """Rank, match probability, cosine, path; more places of the same photo are counted behind it. captions: a line
    with its caption below each that has one."""
    rows = [(*_score_cells(hit), printable_text(str(hit.photo.path)) + _copies(hit)) for hit in hits]
    table = text_table(("#", "match", "cosine", "photo"), rows)
    if not captions:
        return table
    header, *lines = table.splitlines()
    indent = " " * header.index("photo")
    below = [f"\n{indent}{printable_text(hit.caption.text)}" if hit.caption else "" for hit in hits]
    return "\n".join([header, *map("".join, zip(lines, below, strict=True))]) + "\n"


def _copies(hit: Hit) -> str:
    num_others = len(hit.photo.paths) - 1
    return f"  (+{count_text(num_others, 'copy', 'copies')})" if num_others else ""


def format_text_hits_table(hits: Sequence[TextHit]) -> str:
    rows = [(*_score_cells(hit), printable_text(hit.text)) for hit in hits]
    return text_table(("#", "match", "cosine", "text"), rows)


def _score_cells(hit: Hit | TextHit) -> tuple[str, str, str]:
    return str(hit.rank), percent_text(hit.itm), f"{hit.itc:.3f}"


def _scores(hit: Hit | TextHit) -> dict[str, float | None]:
    itm = None if hit.itm is None else round(float(hit.itm), 6)
    return {"score": round(float(hit.score), 6), "itc": round(float(hit.itc), 6), "itm": itm}


def format_hits_json(hits: Sequence[Hit]) -> str:
    """One object a line: rank, path, score, itc, itm (null when not reranked), path_base64 for odd names, caption where
    there is one."""
    lines = []
    for hit in hits:
        names = path_fields(hit.photo.path)
        fields = {"rank": hit.rank, "path": names.pop("path"), **_scores(hit), **names}
        lines.append(json_line(fields if hit.caption is None else {**fields, "caption": hit.caption.text}))
    return "".join(lines)


def format_text_hits_json(hits: Sequence[TextHit]) -> str:
    return "".join(json_line({"rank": hit.rank, "text": hit.text, **_scores(hit)}) for hit in hits)


def join_paths(paths: Iterable[Path], end: bytes = b"\n") -> bytes:
    """The paths as the disk has them, each closed by `end`."""
    return b"".join(os.fsencode(path) + end for path in paths)


def format_failures_table(failures: Sequence[Failure]) -> str:
    """`path: reason`, one a line, as compilers and grep say it."""
    return "".join(f"{printable_text(str(one.path))}: {printable_text(one.reason)}\n" for one in failures)


def format_failures_json(failures: Sequence[Failure]) -> str:
    lines = []
    for one in failures:
        names = path_fields(one.path)
        lines.append(json_line({"path": names.pop("path"), "reason": one.reason, **names}))
    return "".join(lines)
