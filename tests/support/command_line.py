"""Run `qseek` inside the process of a test, and write one-coloured photos for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from click.testing import CliRunner, Result
from PIL import Image

from ui.cli.main import main

ROOT = Path(__file__).parents[2]
RED, GREEN, BLUE, ORANGE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 128, 0)


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (32, 24)) -> Path:
    """Write a PNG file of one colour; return its path. size: width and height in pixels."""
    Image.new("RGB", size, colour).save(path, "PNG")
    return path


def qseek(*arguments: object, stdin: bytes | None = None) -> Result:
    """Run the command `qseek` with these arguments; return its exit code, output and error output."""
    words = [os.fspath(argument) if isinstance(argument, Path) else str(argument) for argument in arguments]
    return CliRunner().invoke(main, words, stdin)


def parse_json_lines(result: Result) -> list[dict]:
    """Parse the output of a command that printed one JSON object in each line."""
    return [json.loads(line) for line in result.stdout.splitlines()]
