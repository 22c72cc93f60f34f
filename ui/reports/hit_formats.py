"""Format hits for a person or a program: as a table, as JSON lines, or as paths.

A path on disk is bytes, and may hold a newline, an escape sequence or bytes that are not UTF-8. `join_paths` gives
exactly those bytes; tables and JSON never do: they write such bytes as `\\xff`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.types import Failure, Hit, TextHit
from engine.wording import count_text
from ui.reports.text_forms import json_line, path_fields, percent_text, printable_text, text_table


def format_hits_table(hits: Sequence[Hit], captions: bool = False) -> str:
    """Return a table with the rank, match probability, cosine and path of each photo.

    Further files of a photo are counted behind its path. captions: add a line with the caption below each photo that
    has one.
    """
    rows = [(*_format_scores(hit), printable_text(str(hit.photo.path)) + _count_copies(hit)) for hit in hits]
    table = text_table(("#", "match", "cosine", "photo"), rows)
    if not captions:
        return table
    header, *lines = table.splitlines()
    indent = " " * header.index("photo")
    caption_lines = [f"\n{indent}{printable_text(hit.caption.text)}" if hit.caption else "" for hit in hits]
    return "\n".join([header, *map("".join, zip(lines, caption_lines, strict=True))]) + "\n"


def _count_copies(hit: Hit) -> str:
    num_others = len(hit.photo.paths) - 1
    return f"  (+{count_text(num_others, 'copy', 'copies')})" if num_others else ""


def format_text_hits_table(hits: Sequence[TextHit]) -> str:
    """Return a table with the rank, match probability, cosine and words of each text."""
    rows = [(*_format_scores(hit), printable_text(hit.text)) for hit in hits]
    return text_table(("#", "match", "cosine", "text"), rows)


def _format_scores(hit: Hit | TextHit) -> tuple[str, str, str]:
    return str(hit.rank), percent_text(hit.itm), f"{hit.itc:.3f}"


def _score_fields(hit: Hit | TextHit) -> dict[str, float | None]:
    itm = None if hit.itm is None else round(float(hit.itm), 6)
    return {"score": round(float(hit.score), 6), "itc": round(float(hit.itc), 6), "itm": itm}


def format_hits_json(hits: Sequence[Hit]) -> str:
    """Return one JSON object on each line: rank, path, score, itc, itm, path_base64, caption.

    itm is null for a photo that was not reranked, path_base64 is there for a path that is not UTF-8, and caption for a
    photo that has one.
    """
    lines = []
    for hit in hits:
        names = path_fields(hit.photo.path)
        fields = {"rank": hit.rank, "path": names.pop("path"), **_score_fields(hit), **names}
        lines.append(json_line(fields if hit.caption is None else {**fields, "caption": hit.caption.text}))
    return "".join(lines)


def format_text_hits_json(hits: Sequence[TextHit]) -> str:
    """Return one JSON object on each line: rank, text, score, itc, and itm, which is null without reranking."""
    return "".join(json_line({"rank": hit.rank, "text": hit.text, **_score_fields(hit)}) for hit in hits)


def join_paths(paths: Iterable[Path], end: bytes = b"\n") -> bytes:
    """Return the exact bytes of the paths, each followed by `end`."""
    return b"".join(os.fsencode(path) + end for path in paths)


def format_failures_table(failures: Sequence[Failure]) -> str:
    """Return one line `path: reason` for each photo, in the form of compilers and grep."""
    return "".join(
        f"{printable_text(str(failure.path))}: {printable_text(failure.reason)}\n" for failure in failures
    )


def format_failures_json(failures: Sequence[Failure]) -> str:
    """Return one JSON object on each line: path, reason, and path_base64 for a path that is not UTF-8."""
    lines = []
    for failure in failures:
        names = path_fields(failure.path)
        lines.append(json_line({"path": names.pop("path"), "reason": failure.reason, **names}))
    return "".join(lines)
