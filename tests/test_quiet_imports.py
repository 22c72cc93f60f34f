"""Importing qseek changes nothing in the process that imports it, and light modules import no heavy library.

The first is decision 12 of ARCHITECTURE.md.
"""

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
from project_files import FOLDERS, ROOT, list_files
from streamlit.testing.v1 import AppTest

from engine.models.loading import load_model
from engine.models.photo_captioners import load_photo_captioner
from ui import session
from ui.cli.main import main

HEAVY = ("torch", "timm", "transformers", "lancedb", "lance", "pyarrow", "faiss", "streamlit", "pandas")
"""Libraries that take long to import."""
LIGHT = {
    "engine.types": HEAVY,
    "engine.errors": HEAVY,
    "engine.pictures.opening": HEAVY,
    "engine.blip2": HEAVY,
    "engine.pictures.squares": HEAVY,
    "engine.processors": HEAVY,
    "engine.progress": HEAVY,
    "indexer.decode": HEAVY,
    "indexer.scan": HEAVY,
    "ui.cli.main": (*HEAVY, "numpy", "PIL", "rich", "pydantic"),
}
"""Modules that must be imported quickly -> the libraries that they must not import.

The command line imports them before it knows the command, or every worker process imports them.
"""
# A program that can compare the settings of its process before and after other code.
SETTINGS = """
import ctypes, importlib, json, os, random, signal, sys, warnings

class Library(ctypes.CDLL):
    "A library of C that notes when the settings of malloc are looked up."
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
# It reads the modules of qseek and of other projects from its input, imports the latter, then compares.
IMPORT_ALL = """
ours, theirs = json.loads(sys.stdin.read())
for name in theirs:
    try:
        importlib.import_module(name)
    except ImportError:  # An optional package, or a name inside a module.
        pass
before = settings()
for name in ours:
    importlib.import_module(name)
print(changed(before))
"""


def list_modules() -> list[str]:
    """Return the dotted names of all modules of the four folders."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in list_files()]
    return [name.removesuffix(".__init__") for name in names]


def list_imported_names(name: str) -> Iterator[str]:
    """Yield every dotted name that a module of qseek imports, also inside functions."""
    path = ROOT.joinpath(*name.split("."))
    source = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def list_changed_settings(program: str, stdin: str = "") -> list[str]:
    """Run a program in a fresh process; return the names of the settings that it prints as changed."""
    process = subprocess.run(
        [sys.executable, "-c", SETTINGS + program],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    names: list[str] = json.loads(process.stdout.splitlines()[-1])
    return names


def test_importing_every_module_leaves_the_settings_of_the_process_alone() -> None:
    """Import other projects first: what they change is not qseek's doing."""
    ours = list_modules()
    assert {"engine.blip2.captioner", "ui.page.page", "training.loop", "indexer.decode"} <= {*ours}
    theirs = {name for module in ours for name in list_imported_names(module) if not name.startswith(FOLDERS)}
    assert list_changed_settings(IMPORT_ALL, json.dumps([ours, sorted(theirs)])) == []


def test_a_setting_that_changes_is_reported() -> None:
    program = """
before = settings()
warnings.filterwarnings("ignore", message="nothing")
from engine.models.malloc import keep_freed_memory
keep_freed_memory()
print(changed(before))
"""
    malloc = ["malloc"] if sys.platform.startswith("linux") else []
    assert list_changed_settings(program) == ["warnings", *malloc]


@pytest.fixture
def malloc_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that receives an entry each time that the C library is told to keep freed memory."""
    calls: list[bool] = []
    monkeypatch.setattr("engine.models.malloc.keep_freed_memory", lambda: calls.append(True))
    return calls


def test_loading_models_leaves_the_memory_allocator_alone(malloc_calls: list[bool]) -> None:
    load_model(device="cpu")
    load_photo_captioner(device="cpu")
    session.load_model(None)
    session.load_photo_captioner(None)
    assert not malloc_calls


def test_the_command_line_keeps_freed_memory(malloc_calls: list[bool], tmp_path: Path) -> None:
    CliRunner().invoke(main, ["failures", "--index", str(tmp_path)])
    assert malloc_calls == [True]


def test_the_page_keeps_freed_memory(
    malloc_calls: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSEEK_INDEX", str(tmp_path / "none"))
    page = AppTest.from_file(str(ROOT / "ui" / "page" / "page.py"), default_timeout=60).run()
    assert not page.exception and malloc_calls == [True]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {LIGHT[module]!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == []
