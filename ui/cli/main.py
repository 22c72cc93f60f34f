"""Define `qseek`: its commands, and how each of them ends.

A command's module is imported when it runs, and torch, lancedb, faiss, streamlit and rich only inside it, so that
`qseek --help` answers at once. Exit codes: 0 success, 1 an error that the message explains, 2 wrong usage, 3 finished
but some photos could not be read, 130 stopped with Ctrl-C, 141 the program that reads the output has ended.
"""

from __future__ import annotations

import errno
import importlib
import os
from typing import Any

import click

from engine.errors import QseekError
from ui.cli.terminal import STOPPED_TEXT, finish_stopped
from ui.reports.text_forms import printable_text
from ui.session import keep_freed_memory

COMMANDS = {
    "index": "ui.cli.commands.index_command",
    "search": "ui.cli.commands.search_command",
    "similar": "ui.cli.commands.search_command",
    "match": "ui.cli.commands.search_command",
    "rerank": "ui.cli.commands.search_command",
    "caption": "ui.cli.commands.caption_command",
    "recall": "ui.cli.commands.recall_command",
    "evaluate": "ui.cli.commands.evaluate_command",
    "train": "ui.cli.commands.train_command",
    "app": "ui.cli.commands.app_command",
    "models": "ui.cli.commands.models_command",
    "failures": "ui.cli.commands.index_command",
    "prune": "ui.cli.commands.index_command",
}
"""The module that defines each command, in the order of `qseek --help`."""
OUTPUT_CLOSED = 141
"""The exit code of a program whose reader has ended, such as `| head`: 128 + SIGPIPE."""


class CommandGroup(click.Group):
    """Imports a command when it is asked for, and turns every error meant for a person into one plain message."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return getattr(importlib.import_module(COMMANDS[name]), name) if name in COMMANDS else None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except QseekError as error:
            raise click.ClickException(_escape_lines(str(error))) from error
        except KeyboardInterrupt:
            finish_stopped(STOPPED_TEXT)
        except OSError as error:
            if error.errno == errno.EPIPE:
                ctx.exit(OUTPUT_CLOSED)
            file_text = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
            raise click.ClickException(_escape_lines(f"{error.strerror or error}{file_text}")) from error


def _escape_lines(message: str) -> str:
    return "\n".join(printable_text(line) for line in message.split("\n"))


@click.group(
    cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="qseek")
def main() -> None:
    """Find photos by describing them.

    \b
        qseek index ~/Pictures
        qseek search "a dog running through the snow"
    """
    keep_freed_memory()


if __name__ == "__main__":
    main()
