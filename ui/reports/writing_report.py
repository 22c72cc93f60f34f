"""What `qseek evaluate` found, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from engine.wording import count_text
from ui.reports.text_forms import json_line, markdown_table, seconds_text


@dataclass(frozen=True)
class Facts:
    """What a report says of a run besides its numbers.

    writer: the model, or the file of predictions; how: how it wrote. num_missing: photos (of captions) or questions
    left out since their pictures are not there or cannot be read. limit: only the first so many, None for all. notes:
    what could not be done. seconds: by phase, of this run; num_kept: texts that an earlier run left.
    """

    dataset: str
    writer: str
    digest: str | None = None
    pixels: int | None = None
    dtype: str | None = None
    how: str | None = None
    limit: int | None = None
    num_missing: int = 0
    num_kept: int = 0
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreRow:
    """The scores, in percent, of all or of a part of a set with so many photos or questions."""

    name: str
    count: int
    scores: Mapping[str, float]


def format_markdown(facts: Facts, rows: Sequence[ScoreRow], what: str, more: str = "") -> str:
    """what: one thing that is scored, "photo" or "question". more: said of the set behind their number."""
    model = ", ".join(
        part
        for part in (facts.digest and facts.digest[:12], facts.pixels and f"{facts.pixels} px", facts.dtype)
        if part
    )
    names = list(rows[0].scores)
    head = f"{facts.dataset}{f' (the first {facts.limit:,})' if facts.limit else ''}, {facts.writer}"
    head += f" ({model}; {facts.how})" if model else ""
    head += f": {count_text(rows[0].count, what)}{more}, percent"
    if facts.num_missing:
        head += f". **{count_text(facts.num_missing, what)} left out: not comparable**"
    cells = [[row.name, *(f"{row.scores[name]:.1f}" for name in names), f"{row.count:,}"] for row in rows]
    lines = [head, "", *markdown_table([*names, f"{what}s"], cells)]
    lines += [f"\n{note}" for note in facts.notes]
    seconds = seconds_text(facts.seconds)
    if facts.num_kept:
        seconds += f"; {facts.num_kept:,} were kept from an earlier run"
    return "\n".join([*lines, "", seconds]) + "\n"


def format_json(facts: Facts, rows: Sequence[ScoreRow], what: str) -> str:
    """One object; scores are in percent."""
    parts = {row.name: {f"num_{what}s": row.count, **row.scores} for row in rows[1:]}
    values = {
        **asdict(facts),
        "unit": "percent",
        f"num_{what}s": rows[0].count,
        "scores": dict(rows[0].scores),
    }
    return json_line({**values, "parts": parts})
