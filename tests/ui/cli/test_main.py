"""`qseek` explains its commands, loads nothing heavy for that, and ends with the exit codes that it promises."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from command_line import ROOT, qseek

from engine.errors import QueryError
from ui import session
from ui.cli.main import COMMANDS

pytestmark = pytest.mark.usefixtures("colours")


class TestHelp:
    def test_each_command_explains_itself(self):
        result = qseek("--help")
        assert result.exit_code == 0
        for name in COMMANDS:
            assert f"\n  {name} " in result.stdout
            assert qseek(name, "--help").exit_code == 0

    def test_help_and_wrong_usage_load_nothing_heavy(self):
        heavy = ("torch", "lancedb", "lance", "faiss", "streamlit", "rich", "numpy", "pyarrow", "PIL", "timm")
        commands = (["--help"], ["search", "--help"], ["index", "--help"], ["app", "--help"], ["index"])
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from click.testing import CliRunner; from ui.cli.main import main\n"
            f"for arguments in {commands}: CliRunner().invoke(main, arguments)\n"
            f"print([name for name in {heavy} if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
        assert done.stdout.decode().strip() == "[]"

    def test_the_program_imports_nothing_heavy_for_help(self):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "ui.cli.main", "--help"],
            cwd=ROOT,
            capture_output=True,
            timeout=60,
            check=True,
            text=True,
        )
        loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
        assert "click" in loaded
        assert not {"torch", "lancedb", "faiss", "streamlit", "rich"} & {
            name.split(".")[0] for name in loaded
        }

    @pytest.mark.parametrize(
        "arguments",
        [["nonsense"], ["search"], ["index"], ["search", "dog", "-k", "0"], ["search", "--json", "-0", "x"]],
    )
    def test_wrong_usage_ends_with_exit_code_2(self, arguments):
        result = qseek(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "Usage:" in result.stderr


def test_a_reader_of_the_output_that_ends_is_no_error(indexed, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.Popen(
        [sys.executable, "-c", _MAIN_WITH_COLOURS, "search", "red"], stdout=write_end, stderr=subprocess.PIPE
    )
    os.close(write_end)
    stderr = done.communicate(timeout=120)[1]
    assert (done.returncode, stderr) == (141, b"")


_MAIN_WITH_COLOURS = (
    f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'support')!r}]\n"
    "import fake_model, ui.session as session\n"
    "session.load_model, session.make_searcher = fake_model.load_fake_model, fake_model.make_fake_searcher\n"
    "from ui.cli.main import main; main(prog_name='qseek')"
)


def test_ctrl_c_while_an_index_is_opened_ends_with_exit_code_130(indexed, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "make_searcher", interrupt)
    result = qseek("search", "red")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "Stopped.\n")


def test_an_error_cannot_command_the_terminal(indexed, monkeypatch):
    def refuse(*_):
        raise QueryError("no photo at '/p/\x1b[2J.jpg'")

    monkeypatch.setattr(session, "make_searcher", refuse)
    assert qseek("search", "red").stderr == "Error: no photo at '/p/\\x1b[2J.jpg'\n"
