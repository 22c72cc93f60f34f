"""`qseek app` starts the page for this computer alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from click import Command, Context
from click.exceptions import Exit
from command_line import ROOT, qseek

from ui.cli.commands.app_command import serve

pytestmark = pytest.mark.usefixtures("colours")


def test_app_listens_on_this_computer_alone(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    assert qseek("app", "--index", tmp_path / "other", "--model", "colours", "--port", 9000).exit_code == 0
    (program, command, environment) = started[0]
    assert program == sys.executable
    assert command[1:4] == ["-m", "streamlit", "run"] and Path(command[4]) == ROOT / "ui" / "page" / "page.py"
    for flag in (
        "--server.address=localhost",
        "--browser.gatherUsageStats=false",
        "--server.headless=true",
        "--server.port=9000",
    ):
        assert flag in command
    assert environment["QSEEK_INDEX"] == str(tmp_path / "other")
    assert environment["QSEEK_MODEL"] == "colours"
    qseek("app", "--open")
    assert "--server.headless=false" in started[1][1]


def test_where_a_process_cannot_be_replaced_the_command_waits_and_ends_with_the_exit_code_of_the_page(
    monkeypatch,
):
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("Windows has no such call that waits"))
    code = "import os, sys; sys.exit(int(os.environ['ENDS_WITH']))"
    with Context(Command("app")), pytest.raises(Exit) as ended:
        serve([sys.executable, "-c", code], {**os.environ, "ENDS_WITH": "7"}, in_place=False)
    assert ended.value.exit_code == 7
