"""Print every text that a person can meet: the help of each command, then errors, notes and lines of the page.

Run it with `make messages` and read what it prints after you have changed a message. A value that is only known when
the message is shown stands in braces.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import click
from project_files import ROOT, get_called_name, list_files

from ui.cli.main import main

PRINTING_FUNCTIONS = ("say", "say_list", "write", "tell", "warning", "echo", "note", "append")
PAGE_ELEMENTS = ("st", "column", "columns", "container", "popover")


def help_texts(command: click.Command, name: str) -> Iterator[str]:
    """Yield the help of a command as the terminal shows it at 80 columns, then the help of its subcommands."""
    context = click.Context(
        command,
        info_name=name,
        terminal_width=80,
        help_option_names=main.context_settings["help_option_names"],
    )
    yield f"$ {name} --help\n{command.get_help(context)}\n"
    if isinstance(command, click.Group):
        for subcommand_name in command.list_commands(context):
            subcommand = command.get_command(context, subcommand_name)
            assert subcommand is not None
            yield from help_texts(subcommand, f"{name} {subcommand_name}")


def messages_of_file(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each text that a file raises as an error, prints in the terminal or shows on the page."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = get_called_name(node)
        owner = getattr(node.func.value, "id", "") if isinstance(node.func, ast.Attribute) else ""
        is_error = called.endswith(("Error", "Exception"))
        if is_error or called in PRINTING_FUNCTIONS or owner in PAGE_ELEMENTS:
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                text = as_text(argument)
                if text and " " in text:
                    yield node.lineno, text


def as_text(node: ast.expr) -> str | None:
    """Return the text of a literal, with `{expression}` for each value in it; None if the node is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
            for part in node.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    return None


def print_all() -> None:
    """Print the help of all commands, then the messages of all files with the file and line of each."""
    for text in help_texts(main, "qseek"):
        print(text)
    for path in list_files():
        for line, text in sorted(messages_of_file(path)):
            print(f"{path.relative_to(ROOT)}:{line}: {text}")


if __name__ == "__main__":
    print_all()
