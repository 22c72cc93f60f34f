"""The pages and messages name only commands, options, recipes and files that exist."""

from __future__ import annotations

import ast
import re

import click
import pytest
from commands_in_text import commands_of_page, read_command
from project_files import ROOT, list_files

import qseek

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "[a-z]*/**/*.md")
    for path in ROOT.glob(pattern)
    if "golden" not in path.parts and "results" not in path.parts
)
SOURCES = [path.relative_to(ROOT).as_posix() for path in list_files()]
FUTURE = ("check", "serve")  # commands that ARCHITECTURE.md plans
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")


def wrong_commands(text: str) -> list[str]:
    """Return each `qseek` command of a text that click does not accept, with click's reason."""
    wrong = []
    for arguments, is_mention in commands_of_page(text):
        try:
            read_command(arguments)
        except click.exceptions.Exit:
            pass  # --help and --version end here
        except (click.MissingParameter, click.BadOptionUsage, click.exceptions.NoArgsIsHelpError) as error:
            if not is_mention:
                wrong.append(f"qseek {' '.join(arguments)}: {error.format_message()}")
        except Exception as error:
            reason = error.format_message() if isinstance(error, click.ClickException) else str(error)
            wrong.append(f"qseek {' '.join(arguments)}: {reason}")
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_one_that_qseek_has(page):
    wrong = wrong_commands((ROOT / page).read_text())
    if page == "ARCHITECTURE.md":
        wrong = [line for line in wrong if line.split()[1].rstrip(":") not in FUTURE]
    assert wrong == []


def texts_of_source(source: str) -> str:
    """Return all texts of a source file, one a line, with X where a value is put in."""
    texts = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            texts.append(
                "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.parametrize("source", SOURCES)
def test_every_command_of_a_message_is_one_that_qseek_has(source):
    assert wrong_commands(texts_of_source((ROOT / source).read_text())) == []


def test_the_pages_name_many_commands():
    counts = {page: len(list(commands_of_page((ROOT / page).read_text()))) for page in PAGES}
    assert counts["README.md"] >= 8 and counts["ui/README.md"] >= 30 and counts["training/README.md"] >= 20


@pytest.mark.parametrize(
    "line",
    [
        "    qseek serach dog",
        "    qseek search dog --tpo 3",
        "    $ qseek search dog -k none",
        "    qseek models pull",
        "    qseek train stage1 --recipe mini-stage1",
        "    qseek train stage1 --recipe mini --set trian.batch=64",
        "    find . | qseek rerank dog --paths --json-lines   # in order",
        "Say `qseek index --again` to mend it.",
    ],
)
def test_a_command_that_does_not_exist_is_found(line):
    assert wrong_commands(line)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_to_is_there(page):
    folder = (ROOT / page).parent
    missing = [
        target for target in LINK.findall((ROOT / page).read_text()) if not (folder / target.strip()).exists()
    ]
    assert missing == []


def test_the_example_of_the_page_is_the_one_that_a_test_runs():
    """The page shows the example in the docstring of qseek, which tests/test_qseek.py runs, and no other."""
    blocks = re.findall(
        r"^    import qseek\n(?:(?:    .*)?\n)+", (ROOT / "ui/README.md").read_text(), re.MULTILINE
    )
    assert len(blocks) == 1 and blocks[0].strip() in (qseek.__doc__ or "")


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
