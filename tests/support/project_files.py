"""The folders of the project's code, and the syntax tree of each file in them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("engine", "indexer", "training", "ui")


def list_files() -> list[Path]:
    """Return the paths of all Python files of the four folders, sorted."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def get_called_name(call: ast.Call) -> str:
    """Return the name of the function or class that a call names last, such as `read` of `file.read()`; "" for
    others.
    """
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def parse_files() -> Iterator[tuple[str, ast.Module]]:
    """Yield (path relative to the root, syntax tree) of all Python files of the four folders."""
    for path in list_files():
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_bytes(), str(path))
