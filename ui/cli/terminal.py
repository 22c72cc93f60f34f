"""Write results to stdout and everything else to stderr."""

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
"""The exit code of a command that did its work but could not read some photos."""
STOPPED = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as shells have it."""
STOPPED_TEXT = "Stopped."
STOPPED_AND_RESUMABLE_TEXT = "Stopped. The same command goes on from here."
MAX_LISTED = 10


def write(result: str | bytes) -> None:
    """Write a result to stdout, as UTF-8 in every locale, and flush it, so that a closed pipe is noticed here."""
    sys.stdout.buffer.write(result.encode("utf-8") if isinstance(result, str) else result)
    sys.stdout.buffer.flush()


def say(message: str) -> None:
    """Print a message of one or more lines on stderr; characters that could command the terminal are escaped."""
    click.echo("\n".join(printable_text(line) for line in message.split("\n")), err=True)


def say_notes(notes: Sequence[str]) -> None:
    """Print each note on a line of its own."""
    for note in notes:
        say(f"Note: {note}")


def say_failures(failures: Sequence[Failure], more: str = "") -> None:
    """Print the first few photos that could not be read, with the reasons; nothing when there is none.

    more: text that follows the number of the other photos, such as where they are listed.
    """
    if not failures:
        return
    lines = [format_failures_table([failure]).rstrip("\n") for failure in failures]
    say_list(f"{count_text(len(failures), 'photo')} could not be read:", lines, more)


def report_missing(
    names: Sequence[str], reason: str, *, allowed: bool, total: int | None = None, consequence: str = ""
) -> None:
    """Print which photos of an evaluation set are missing, and why. Raises DataError unless that is allowed.

    total: the number of photos in the set, None where it is not known. consequence: a sentence that
    says what leaving the photos out does to the scores.
    """
    among = (
        count_text(len(names), "photo")
        if total is None
        else f"{len(names):,} of {count_text(total, 'photo')}"
    )
    say_list(f"{among} {reason}:", names)
    if not allowed:
        are, them = ("is", "it") if len(names) == 1 else ("are", "them")
        raise DataError(
            f"{among} {are} missing. Add {them}, or leave {them} out with --allow-missing (the report will say so)."
            f"{consequence and ' ' + consequence}"
        )


def say_list(heading: str, lines: Sequence[str], more: str = "") -> None:
    """Print a heading and the first few lines below it. more: text that follows the number of the other lines."""
    say(heading)
    for line in lines[:MAX_LISTED]:
        say(f"  {line}")
    if len(lines) > MAX_LISTED:
        say(f"  and {len(lines) - MAX_LISTED:,} more{more}")


def finish_with_failures() -> NoReturn:
    """End the command with the exit code that says that some photos could not be read."""
    click.get_current_context().exit(FINISHED_WITH_FAILURES)


def finish_stopped(message: str) -> NoReturn:
    """End the command with the exit code for Ctrl-C, after printing a message."""
    say(message)
    click.get_current_context().exit(STOPPED)
