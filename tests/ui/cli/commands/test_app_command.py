"""`qseek app` starts the page for this computer alone."""

import os
import sys
from pathlib import Path

import pytest
from command_line import ROOT, qseek

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
