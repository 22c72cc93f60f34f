"""Format the report of `qseek evaluate` as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from engine.wording import count_text
from ui.reports.text_forms import json_line, markdown_table, seconds_text


@dataclass(frozen=True)
class Facts:
    """The facts about a run that its report gives besides the scores; the fields are keys of its JSON.

    dataset: the name of the set. writer: the model, or the file of predictions. digest, pixels, dtype: of the model,
    None without one. how: the options with which the model wrote, in words. limit: number of items used from the
    beginning of the set, None for all. num_missing: photos or questions that were left out because their pictures are
    missing or cannot be read. num_kept: texts that an earlier run wrote. notes: what could not be done. seconds: wall
    time of each phase of this run.
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
    """The scores, in percent, of a whole set or a part of it. count: its number of photos or questions."""

    name: str
    count: int
    scores: Mapping[str, float]


def format_markdown(facts: Facts, rows: Sequence[ScoreRow], noun: str, count_suffix: str = "") -> str:
    """Return the report in Markdown: a heading line, a table with one line for each row, notes, and times.

    rows: the whole set first, then its parts. noun: what is scored, "photo" or "question". count_suffix: text that
    follows the number of photos or questions.
    """
    model = ", ".join(
        part
        for part in (facts.digest and facts.digest[:12], facts.pixels and f"{facts.pixels} px", facts.dtype)
        if part
    )
    names = list(rows[0].scores)
    heading = f"{facts.dataset}{f' (the first {facts.limit:,})' if facts.limit else ''}, {facts.writer}"
    heading += f" ({model}; {facts.how})" if model else ""
    heading += f": {count_text(rows[0].count, noun)}{count_suffix}, percent"
    if facts.num_missing:
        heading += f". **{count_text(facts.num_missing, noun)} left out: not comparable**"
    cells = [[row.name, *(f"{row.scores[name]:.1f}" for name in names), f"{row.count:,}"] for row in rows]
    lines = [heading, "", *markdown_table([*names, f"{noun}s"], cells)]
    lines += [f"\n{note}" for note in facts.notes]
    seconds = seconds_text(facts.seconds)
    if facts.num_kept:
        seconds += f"; {facts.num_kept:,} were kept from an earlier run"
    return "\n".join([*lines, "", seconds]) + "\n"


def format_json(facts: Facts, rows: Sequence[ScoreRow], noun: str) -> str:
    """Return the report as one JSON object on one line; scores are in percent. See `format_markdown`."""
    parts = {row.name: {f"num_{noun}s": row.count, **row.scores} for row in rows[1:]}
    values = {
        **asdict(facts),
        "unit": "percent",
        f"num_{noun}s": rows[0].count,
        "scores": dict(rows[0].scores),
    }
    return json_line({**values, "parts": parts})
