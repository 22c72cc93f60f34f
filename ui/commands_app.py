"""app and models: the page, and which models there are."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ui import render
from ui.opening import index_folder
from ui.options import index_option, json_option, model_option
from ui.terminal import say, write

if TYPE_CHECKING:
    from engine.blip2.checkpoint import ModelInfo

OWN_NAMES = ("localhost", "127.0.0.1", "::1")  # no other: a foreign page may rebind its name to this computer
PAGE = Path(__file__).with_name("app.py")


@click.command()
@index_option
@model_option
@click.option("--port", type=click.IntRange(1, 65535), help="Where it listens.  [default: 8501 or above]")
@click.option("--open", "open_browser", is_flag=True, help="Open it in the browser at once.")
def app(index: Path | None, model: str | None, port: int | None, open_browser: bool) -> None:
    """Open the page: the same search with pictures. It listens on this computer alone."""
    environment = {**os.environ, "QSEEK_INDEX": str(index_folder(index))}
    if model is not None:
        environment["QSEEK_MODEL"] = model
    command = streamlit_command(port, open_browser)
    os.execve(sys.executable, command, environment)


def streamlit_command(port: int | None, open_browser: bool) -> list[str]:
    """The program and arguments that serve the page on localhost and tell nobody of it."""
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
    flags += [f"--server.allowedHosts={name}" for name in OWN_NAMES]
    return [sys.executable, "-m", "streamlit", "run", str(PAGE), *flags]


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the models that are here, bundled or in the user's folder."""
    from engine.blip2.checkpoint import list_models

    found = list_models()
    if as_json:
        write("".join(render.json_line(_fields(one)) for one in found))
        return
    if not found:
        say("No model is here.")
        return
    rows = [
        (
            one.name,
            f"{one.num_parameters / 1e6:,.1f} M",
            render.size_text(one.num_bytes),
            f"{one.image_size} px",
            one.digest[:12],
            render.printable(str(one.folder)),
        )
        for one in found
    ]
    write(render.text_table(("name", "parameters", "size", "photo side", "digest", "folder"), rows))


def _fields(model: ModelInfo) -> dict[str, str | int]:
    names = render.path_fields(model.folder)
    return {
        "name": model.name,
        "folder": names["path"],
        "digest": model.digest,
        "num_parameters": model.num_parameters,
        "num_bytes": model.num_bytes,
        "image_size": model.image_size,
    }
