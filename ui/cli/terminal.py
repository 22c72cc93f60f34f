"""Results go to stdout, all else to stderr."""

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from engine.types import Failure
from ui.reports.hit_formats import failures_table
from ui.reports.text_forms import count_text, printable

FINISHED_WITH_FAILURES = 3
STOPPED = 130  # 128 + SIGINT, as shells have it
MOST_FAILURES_SHOWN = 10


def write(result: str | bytes) -> None:
    """To stdout, as UTF-8 whatever the locale, and flushed, so that a closed pipe is noticed here."""
    sys.stdout.buffer.write(result.encode("utf-8") if isinstance(result, str) else result)
    sys.stdout.buffer.flush()


def say(message: str) -> None:
    """To stderr, a line or several; a file name in it cannot command the terminal."""
    click.echo("\n".join(printable(line) for line in message.split("\n")), err=True)


def say_failures(failures: Sequence[Failure], more: str = "") -> None:
    """The first few unreadable photos with their reasons; more: says where the rest are listed."""
    if not failures:
        return
    say(f"{count_text(len(failures), 'photo')} could not be read:")
    for failure in failures[:MOST_FAILURES_SHOWN]:
        say("  " + failures_table([failure]).rstrip("\n"))
    if len(failures) > MOST_FAILURES_SHOWN:
        say(f"  and {len(failures) - MOST_FAILURES_SHOWN:,} more{more}")


def finish_with_failures() -> NoReturn:
    click.get_current_context().exit(FINISHED_WITH_FAILURES)
