"""Define `qseek app`, which serves the page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from ui.cli.options import captioner_option, index_option, model_option
from ui.session import CAPTIONER_VARIABLE, resolve_index_folder

# The page answers to no other name: a page from elsewhere may bind its own name to this computer (DNS rebinding).
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
PAGE = Path(__file__).parents[2] / "page" / "page.py"


@click.command()
@index_option
@model_option
@captioner_option
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Serve the page at this port.",
    show_default="8501 or above",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser at once.")
def app(
    index: Path | None, model: str | None, captioner: str | None, port: int | None, open_browser: bool
) -> None:
    """Serve a page that searches and shows the photos.

    Only this computer can open the page.
    """
    environment = {**os.environ, "QSEEK_INDEX": str(resolve_index_folder(index))}
    if model is not None:
        environment["QSEEK_MODEL"] = model
    if captioner is not None:
        environment[CAPTIONER_VARIABLE] = captioner
    serve(build_streamlit_command(port, open_browser), environment)


def serve(command: list[str], environment: Mapping[str, str], in_place: bool = os.name != "nt") -> None:
    """Run a program until it ends, and end with its exit code.

    in_place: replace this process by the program, so that no process waits for it.
    """
    if in_place:
        os.execve(command[0], command, environment)
    else:
        # On Windows execve starts another process and ends this one, and the shell would not wait for the page.
        click.get_current_context().exit(subprocess.run(command, env=environment, check=False).returncode)


def build_streamlit_command(port: int | None, open_browser: bool) -> list[str]:
    """Return the program and arguments that serve the page on localhost and report nothing to anybody."""
    settings = {
        "server.address": "localhost",
        "server.headless": "false" if open_browser else "true",
        "server.fileWatcherType": "none",
        "server.showEmailPrompt": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "theme.light.primaryColor": "#2f8f74",
        "theme.dark.primaryColor": "#3fae8f",
    }
    if port is not None:
        settings["server.port"] = str(port)
    flags = [f"--{name}={value}" for name, value in settings.items()]
    flags += [f"--server.allowedHosts={name}" for name in LOCAL_NAMES]
    return [sys.executable, "-m", "streamlit", "run", str(PAGE), *flags]
