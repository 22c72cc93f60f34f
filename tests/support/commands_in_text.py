"""Find the `qseek ...` commands that pages and messages name, and let click read them without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import click

from training.recipes.recipe_catalogue import BY_KIND
from training.recipes.recipe_settings import apply_settings
from ui.cli.main import main

INLINE = re.compile(r"`(qseek [^`]+)`")
LINE_OF_CODE = re.compile(r"^(?: {4}|\$ )(.*)$", re.MULTILINE)


def commands_of_page(text: str) -> Iterator[tuple[list[str], bool]]:
    """Yield (arguments, is_mention) of each `qseek` command in backticks or in a block of code on a page.

    A command in backticks is a mention, which may leave out arguments that the command needs. A line of a block may
    hold a prompt, a comment, other programs before and after the command, and `torchrun ... qseek`.
    """
    for command in INLINE.findall(re.sub(r"\s*\n\s*", " ", text)):
        for arguments in commands_of_line(command):
            yield arguments, True
    for line in LINE_OF_CODE.findall(re.sub(r"\\\n\s*", "", text)):
        for arguments in commands_of_line(line.removeprefix("$ ")):
            yield arguments, False


def commands_of_line(line: str) -> Iterator[list[str]]:
    """Yield the arguments that follow the word `qseek` in each part of a shell line, until a pipe or an `&&`."""
    if not re.search(r"(^|[|;&]\s*|--no-python )qseek ", line):
        return
    commands: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word in ("|", "||", "&&", ";"):
            commands.append([])
        else:
            commands[-1].append(word)
    for words in commands:
        if "qseek" in words:
            yield [word for word in words[words.index("qseek") + 1 :] if word != "..."]


def read_command(arguments: list[str]) -> None:
    """Let click parse the arguments of a command without running it or opening files, and look up a named recipe.

    Raises click.ClickException for an unknown command, option or value and for too many or missing arguments, and
    DataError for a setting that the recipe does not have.
    """
    with (
        mock.patch.object(click.Path, "convert", lambda self, value, param, ctx: Path(value)),
        mock.patch.object(click.File, "convert", lambda self, value, param, ctx: value),
    ):
        context = main.make_context("qseek", list(arguments))
        while isinstance(context.command, click.Group):
            remaining = [*context._protected_args, *context.args]
            if not remaining:
                return
            name, command, remaining = context.command.resolve_command(context, remaining)
            context = command.make_context(name, remaining, parent=context)
    if context.command.name == "train" and context.params["recipe"]:
        kind, recipe = arguments[1], context.params["recipe"]
        if recipe not in BY_KIND[kind]:
            raise click.UsageError(f"There is no {kind} recipe {recipe!r}.")
        apply_settings(BY_KIND[kind][recipe](), context.params["changes"])
