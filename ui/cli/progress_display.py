"""Show how far a run is on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.wording import count_text
from ui.cli.terminal import say
from ui.reports.text_forms import duration_text

if TYPE_CHECKING:
    from engine.progress import Progress

SECONDS_BETWEEN_LINES = 10.0


def pace_text(progress: Progress, noun: str = "photo") -> str:
    """Return the pace of a run, such as "85 photos/s, 44 s left, 2 failed", without the parts that are not known.

    noun: what is counted, in the singular.
    """
    parts = []
    if progress.per_second:
        decimals = 0 if progress.per_second >= 10 else 1
        parts.append(f"{progress.per_second:,.{decimals}f} {noun}s/s")
    if progress.seconds_left is not None and progress.done < progress.total:
        parts.append(f"{duration_text(progress.seconds_left)} left")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    return ", ".join(parts)


@contextmanager
def show_progress(noun: str = "photo") -> Iterator[Callable[[Progress], None]]:
    """Give a function that a run calls with its progress, and that shows it. noun: what is counted, in the singular."""
    if sys.stderr.isatty():
        with _show_bar(noun) as update:
            yield update
    else:
        yield _ProgressLines(noun).update


class _ProgressLines:
    """Says one line every SECONDS_BETWEEN_LINES, and one at the end."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self.last_said = time.monotonic()

    def update(self, progress: Progress) -> None:
        is_end = progress.done == progress.total
        if not is_end and time.monotonic() - self.last_said < SECONDS_BETWEEN_LINES:
            return
        self.last_said = time.monotonic()
        pace = pace_text(progress, self.noun)
        say(f"{progress.done:,} of {count_text(progress.total, self.noun)}{pace and ', ' + pace}")


@contextmanager
def _show_bar(noun: str) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = [BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[pace]}")]
    with Bar(*columns, console=Console(stderr=True), expand=True, transient=True) as bar:
        task = bar.add_task("", total=None, pace="looking for photos")

        def update(progress: Progress) -> None:
            bar.update(task, total=progress.total, completed=progress.done, pace=pace_text(progress, noun))

        yield update
