"""Results go to stdout, all else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from engine.errors import DataError
from engine.types import Failure
from engine.wording import count_text
from ui.reports.hit_formats import format_failures_table
from ui.reports.text_forms import printable_text

FINISHED_WITH_FAILURES = 3
STOPPED = 130  # 128 + SIGINT, as shells have it
STOPPED_AND_RESUMABLE = "Stopped; the same command goes on from here."
MOST_NAMES_SHOWN = 10


def write(result: str | bytes) -> None:
    """To stdout, as UTF-8 whatever the locale, and flushed, so that a closed pipe is noticed here."""
    sys.stdout.buffer.write(result.encode("utf-8") if isinstance(result, str) else result)
    sys.stdout.buffer.flush()


def say(message: str) -> None:
    """To stderr, a line or several; a file name in it cannot command the terminal."""
    click.echo("\n".join(printable_text(line) for line in message.split("\n")), err=True)


def say_failures(failures: Sequence[Failure], more: str = "") -> None:
    """The first few unreadable photos with their reasons; more: says where the rest are listed."""
    if not failures:
        return
    lines = [format_failures_table([failure]).rstrip("\n") for failure in failures]
    say_list(f"{count_text(len(failures), 'photo')} could not be read:", lines, more)


def report_missing(
    names: Sequence[str], why: str, *, allowed: bool, total: int | None = None, because: str = ""
) -> None:
    """Say which photos of an evaluation set are missing, and why; raise DataError unless that is allowed.

    total: how many photos the set has, where that is known. because: why leaving them out is no small thing.
    """
    among = (
        count_text(len(names), "photo")
        if total is None
        else f"{len(names):,} of {count_text(total, 'photo')}"
    )
    say_list(f"{among} {why}:", names)
    if not allowed:
        are, them = ("is", "it") if len(names) == 1 else ("are", "them")
        raise DataError(
            f"{among} {are} missing{because}: add {them}, or leave {them} out with --allow-missing (the report will "
            "say so)."
        )


def say_list(heading: str, lines: Sequence[str], more: str = "") -> None:
    """Say a heading and the first few lines below it; more: added to the number of the others."""
    say(heading)
    for line in lines[:MOST_NAMES_SHOWN]:
        say(f"  {line}")
    if len(lines) > MOST_NAMES_SHOWN:
        say(f"  and {len(lines) - MOST_NAMES_SHOWN:,} more{more}")


def finish_with_failures() -> NoReturn:
    click.get_current_context().exit(FINISHED_WITH_FAILURES)
