"""Calls of `qseek` inside the process of the test, and one-coloured photos for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from click.testing import CliRunner
from PIL import Image

from ui.cli.main import main

ROOT = Path(__file__).parents[2]
RED, GREEN, BLUE, ORANGE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 128, 0)


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (32, 24)) -> Path:
    Image.new("RGB", size, colour).save(path, "PNG")
    return path


def qseek(*arguments: object, stdin: bytes | None = None):
    return CliRunner().invoke(
        main, [os.fspath(one) if isinstance(one, Path) else str(one) for one in arguments], stdin
    )


def parse_json_lines(result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]
