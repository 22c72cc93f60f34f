"""Imports follow the arrows of ARCHITECTURE.md (ui -> indexer -> engine <- training) and its table of rooms.

Each library is imported in its own folders alone, and only ui prints or exits.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from project_files import FOLDERS, parse_files

# Folder -> the folders from which it may import.
MAY_IMPORT = {
    "engine": {"engine"},
    "indexer": {"indexer", "engine"},
    "training": {"training", "engine"},
    "ui": {"ui", "indexer", "training", "engine"},
}
# Library -> the folders, or files, that may import it.
OWNERS = {
    "lancedb": ("engine/index/",),
    "lance": ("engine/index/",),
    "pyarrow": ("engine/index/",),
    "filelock": ("engine/index/",),
    "faiss": ("engine/vectors/",),
    "timm": ("engine/blip2/", "engine/checkpoints/", "training/"),
    "transformers": ("engine/blip2/", "engine/checkpoints/", "engine/models/", "training/"),
    "huggingface_hub": ("engine/blip2/", "engine/models/", "ui/"),
    "click": ("ui/",),
    "pydantic": ("training/recipes/",),
    "streamlit": ("ui/",),
    "rich": ("ui/",),
    "braceexpand": ("engine/datasets/tar_shards",),
}
# The ground: modules that every room may import.
GROUND = (
    "engine/processors",
    "engine/errors",
    "engine/types",
    "engine/atomic",
    "engine/progress",
    "engine/wording",
)
# Each room of the house -> the rooms from which it may import, beside itself and the ground. A file that is named here
# may import from other rooms than the rest of its folder. ARCHITECTURE.md explains the table.
ENGINE_FOR_TRAINING = (
    "engine/datasets",
    "engine/pictures",
    "engine/blip2",
    "engine/checkpoints",
    "engine/models",
)
UI_FOR_COMMANDS = ("ui/cli", "ui/session", "ui/reports")
ROOMS: dict[str, tuple[str, ...]] = {
    "engine/blip2": (),
    "engine/index": (),
    "engine/pictures": (),
    "engine/datasets": ("engine/pictures",),
    "engine/vectors": ("engine/index",),
    "engine/checkpoints": ("engine/blip2",),
    "engine/models": ("engine/checkpoints", "engine/blip2"),
    "engine/search": ("engine/vectors", "engine/index", "engine/models", "engine/blip2", "engine/pictures"),
    "engine/evaluation": ("engine/models", "engine/datasets", "engine/blip2"),
    "indexer": ("engine/index", "engine/vectors", "engine/pictures", "engine/models"),
    "training/distributed": (),
    "training/loop": ("training/distributed", *ENGINE_FOR_TRAINING),
    "training/losses": ("training/loop", "training/distributed", *ENGINE_FOR_TRAINING),
    "training/batches": ("training/loop", "training/distributed", *ENGINE_FOR_TRAINING),
    "training/stages": (
        "training/batches", "training/losses", "training/loop", "training/distributed", *ENGINE_FOR_TRAINING,
    ),
    "training/capfilt": (
        "training/stages", "training/batches", "training/loop", "training/distributed", *ENGINE_FOR_TRAINING,
    ),
    "training/recipes": ("training/stages", "training/capfilt", "training/loop", *ENGINE_FOR_TRAINING),
    "ui/reports": ("engine/evaluation",),
    "ui/session": ("indexer", "engine/search", "engine/models", "engine/index"),
    "ui/cli": ("ui/session", "ui/reports"),
    "ui/cli/commands": UI_FOR_COMMANDS,
    "ui/cli/commands/index_command": ("indexer", *UI_FOR_COMMANDS),
    "ui/cli/commands/caption_command": ("engine/search", "engine/models", "engine/blip2", *UI_FOR_COMMANDS),
    "ui/cli/commands/recall_command": (
        "ui/cli/commands/recall_run", "ui/cli/commands/recall_files", "engine/evaluation", "engine/datasets",
        *UI_FOR_COMMANDS,
    ),
    "ui/cli/commands/recall_run": ("engine/evaluation", "engine/datasets", "engine/models", *UI_FOR_COMMANDS),
    "ui/cli/commands/recall_files": ("engine/evaluation", "engine/datasets", *UI_FOR_COMMANDS),
    "ui/cli/commands/evaluate_command": (
        "ui/cli/commands/evaluate_writing", "engine/evaluation", "engine/datasets", *UI_FOR_COMMANDS,
    ),
    "ui/cli/commands/evaluate_writing": ("engine/evaluation", "engine/datasets", *UI_FOR_COMMANDS),
    "ui/cli/commands/models_command": ("engine/checkpoints", "engine/models", "training/loop", *UI_FOR_COMMANDS),
    "ui/cli/commands/train_command": (
        "training/recipes", "training/stages", "training/capfilt", "training/loop", *UI_FOR_COMMANDS,
    ),
    "ui/page": ("ui/session", "ui/reports", "engine/search", "engine/models", "engine/index", "engine/pictures"),
}  # fmt: skip
# Files above the rooms that hold nothing but a docstring.
SIGNS = ("engine/__init__.py", "training/__init__.py", "ui/__init__.py")

IMPORT_FUNCTIONS = ("import_module", "importlib.import_module")


@dataclass(frozen=True)
class Import:
    """An import statement. file: relative to the root. name: dotted, from the root of its package."""

    file: str
    line: int
    name: str

    @property
    def package(self) -> str:
        """Return the first part of the name, such as torch."""
        return self.name.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def list_imports(file: str, tree: ast.AST) -> Iterator[Import]:
    """Yield every import of a file, also those inside functions and for type checkers; relative names are resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            parts = file.removesuffix(".py").split("/")[: -node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(file, node.lineno, f"{base}.{alias.name}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORT_FUNCTIONS:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant):
                yield Import(file, node.lineno, str(first.value))


ALL_IMPORTS = [statement for file, tree in parse_files() for statement in list_imports(file, tree)]


def find_room(name: str) -> str | None:
    """Return the room of a module, given as a path or as a dotted name; None for a module in no room."""
    path = name.removesuffix(".py").replace(".", "/")
    rooms = [room for room in (*ROOMS, *GROUND) if path == room or path.startswith(room + "/")]
    return max(rooms, key=len, default=None)


def list_imports_against_the_arrows(imports: list[Import]) -> list[str]:
    """Return the imports from a folder from which the importing folder may not import."""
    ours = [statement for statement in imports if statement.package in (*FOLDERS, "tests")]
    return [
        str(statement)
        for statement in ours
        if statement.package not in MAY_IMPORT[statement.file.split("/")[0]]
    ]


def list_imports_outside_the_table(imports: list[Import]) -> list[str]:
    """Return the imports from a room from which the table does not allow the importing room to import."""
    forbidden = []
    for statement in imports:
        room, imported = find_room(statement.file), find_room(statement.name)
        if room is None or imported is None or imported == room or imported in GROUND:
            continue
        if imported not in ROOMS.get(room, ()):
            forbidden.append(str(statement))
    return forbidden


def list_prints_and_exits(file: str, tree: ast.AST) -> list[str]:
    """Return the calls outside of ui that print, write to a standard stream or exit.

    os._exit is allowed: a worker process whose parent has died has nobody to return to.
    """
    if file.startswith("ui/"):
        return []
    functions = {"print", "input", "exit", "quit", "sys.exit"}
    beginnings = ("sys.stdout.", "sys.stderr.", "click.", "traceback.print")
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in functions or name.startswith(beginnings):
                problems.append(f"{file}:{node.lineno} calls {name}")
        if isinstance(node, ast.Raise) and node.exc is not None and "SystemExit" in ast.unparse(node.exc):
            problems.append(f"{file}:{node.lineno} raises SystemExit")
    return problems


def test_the_files_of_all_folders_are_read() -> None:
    files = {statement.file for statement in ALL_IMPORTS}
    one_of_each = {
        "engine/search/searcher.py",
        "indexer/build.py",
        "training/loop/train_loop.py",
        "ui/cli/main.py",
    }
    assert one_of_each <= files
    assert any(statement.name == "torch" for statement in ALL_IMPORTS) and len(ALL_IMPORTS) > 200


def test_imports_follow_the_arrows() -> None:
    assert not list_imports_against_the_arrows(ALL_IMPORTS)


def test_each_room_imports_only_what_the_table_allows() -> None:
    assert not list_imports_outside_the_table(ALL_IMPORTS)


def test_every_file_is_in_a_room() -> None:
    files = [file for file, _ in parse_files() if file not in SIGNS]
    assert not [file for file in files if find_room(file) is None]
    assert {find_room(file) for file in files} >= {*ROOMS} - {*GROUND}


def test_each_library_is_imported_by_its_owners_alone() -> None:
    forbidden = [
        str(statement)
        for statement in ALL_IMPORTS
        if statement.package in OWNERS and not statement.file.startswith(OWNERS[statement.package])
    ]
    assert not forbidden


@pytest.mark.parametrize(
    "library", sorted(OWNERS.keys() - {"lance"})
)  # lance comes with lancedb; no file needs it yet.
def test_each_library_of_the_table_is_imported(library: str) -> None:
    assert any(statement.package == library for statement in ALL_IMPORTS)


def test_only_ui_prints_or_exits() -> None:
    assert not [problem for file, tree in parse_files() for problem in list_prints_and_exits(file, tree)]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("engine/search/searcher.py", "def f():\n    from indexer import scan"),
        ("engine/models/retrieval_model.py", "import training.loop.train_loop as loop"),
        ("indexer/build.py", "from ui.reports.text_forms import printable_text"),
        ("training/loop/train_loop.py", "import importlib\nimportlib.import_module('indexer.build')"),
        ("engine/index/store.py", "from ...ui import cli"),
    ],
)
def test_an_import_against_the_arrows_is_found(file: str, code: str) -> None:
    assert list_imports_against_the_arrows(list(list_imports(file, ast.parse(code))))


def test_an_import_within_a_folder_is_not_against_the_arrows() -> None:
    code = "from . import tables\nfrom ..errors import QseekError"
    assert not list_imports_against_the_arrows(list(list_imports("engine/index/store.py", ast.parse(code))))


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("engine/index/store.py", "def f():\n    from engine.blip2.config import mini"),
        ("engine/errors.py", "from engine.blip2 import config"),
        ("engine/vectors/deeper/one.py", "from ...models import loading"),
    ],
)
def test_an_import_outside_the_table_is_found(file: str, code: str) -> None:
    assert list_imports_outside_the_table(list(list_imports(file, ast.parse(code))))


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("engine/vectors/one.py", "from engine.index.store import Store\nimport engine.errors"),
        ("engine/index/store.py", "from engine.index import manifest"),
    ],
)
def test_an_import_from_the_own_room_the_ground_or_an_allowed_room_is_accepted(file: str, code: str) -> None:
    assert not list_imports_outside_the_table(list(list_imports(file, ast.parse(code))))


@pytest.mark.parametrize(
    "code",
    ["print(1)", "sys.exit(2)", "def f():\n    raise SystemExit", "sys.stderr.write('x')", "exit()"],
)
def test_a_print_or_exit_is_found_outside_of_ui(code: str) -> None:
    assert list_prints_and_exits("engine/search/searcher.py", ast.parse(code))
    assert not list_prints_and_exits("ui/cli/main.py", ast.parse(code))
