"""Importing qseek changes nothing in the process that imports it (ARCHITECTURE, decision 12)."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from streamlit.testing.v1 import AppTest

from engine.models.loading import load_model
from engine.models.photo_captioners import load_photo_captioner
from ui import session
from ui.cli.main import main

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "indexer", "training", "ui")
SETTINGS = """
import ctypes, importlib, json, os, random, signal, sys, warnings

class Library(ctypes.CDLL):
    "Note that malloc's settings are asked for."
    def __getattr__(self, name):
        if name == "mallopt":
            malloc.append(name)
        return super().__getattr__(name)

malloc, ctypes.CDLL = [], Library

import numpy, torch

def settings():
    return {
        "warnings": [str(entry) for entry in warnings.filters],
        "malloc": list(malloc),
        "environment": dict(os.environ),
        "module path": list(sys.path),
        "signals": {str(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
        "draws": [str(random.getstate()), str(numpy.random.get_state()), str(torch.get_rng_state().tolist())],
        "threads and dtype of torch": [torch.get_num_threads(), str(torch.get_default_dtype())],
    }

def changed(before):
    after = settings()
    return json.dumps([name for name in before if before[name] != after[name]])
"""
IMPORT_ALL = """
ours, theirs = json.loads(sys.stdin.read())
for name in theirs:
    try:
        importlib.import_module(name)
    except ImportError:  # what is optional, or a name inside a module
        pass
before = settings()
for name in ours:
    importlib.import_module(name)
print(changed(before))
"""


def modules() -> list[str]:
    """Return the dotted names of all modules of the four folders."""
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def imports_of_others(name: str) -> Iterator[str]:
    """List what a module of ours imports from other projects, wherever it does, as dotted names."""
    path = ROOT.joinpath(*name.split("."))
    source = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def settings_changed_by(program: str, given: str = "") -> list[str]:
    """Run a program in a fresh process; return the names of the settings that it prints as changed."""
    done = subprocess.run(
        [sys.executable, "-c", SETTINGS + program], input=given, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


def test_importing_every_module_leaves_the_settings_of_the_process_alone() -> None:
    """What we use of other projects is imported before: what that changes is not ours."""
    ours = modules()
    assert {"engine.blip2.captioner", "ui.page.page", "training.loop", "indexer.decode"} <= {*ours}
    theirs = {name for module in ours for name in imports_of_others(module) if not name.startswith(FOLDERS)}
    assert settings_changed_by(IMPORT_ALL, json.dumps([ours, sorted(theirs)])) == []


def test_a_changed_setting_would_be_seen() -> None:
    program = """
before = settings()
warnings.filterwarnings("ignore", message="nothing")
from engine.models.malloc import keep_freed_memory
keep_freed_memory()
print(changed(before))
"""
    malloc = ["malloc"] if sys.platform.startswith("linux") else []
    assert settings_changed_by(program) == ["warnings", *malloc]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each time that the C library is told to keep freed memory."""
    told: list[bool] = []
    monkeypatch.setattr("engine.models.malloc.keep_freed_memory", lambda: told.append(True))
    return told


def test_a_program_that_loads_models_keeps_its_malloc(told: list[bool]) -> None:
    load_model(device="cpu")
    load_photo_captioner(device="cpu")
    session.load_model(None)
    session.load_photo_captioner(None)
    assert not told


def test_the_command_line_has_freed_memory_kept(told: list[bool], tmp_path: Path) -> None:
    CliRunner().invoke(main, ["failures", "--index", str(tmp_path)])
    assert told == [True]


def test_the_page_has_freed_memory_kept(
    told: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSEEK_INDEX", str(tmp_path / "none"))
    page = AppTest.from_file(str(ROOT / "ui" / "page" / "page.py"), default_timeout=60).run()
    assert not page.exception and told == [True]
