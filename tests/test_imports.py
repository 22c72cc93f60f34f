"""The arrows of ARCHITECTURE: ui -> indexer -> engine <- training; who owns which library; what stays light."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "indexer", "training", "ui")
MAY_IMPORT = {
    "engine": {"engine"},
    "indexer": {"indexer", "engine"},
    "training": {"training", "engine"},
    "ui": {"ui", "indexer", "training", "engine"},
}
# The folders, or files, that may import a library.
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
# The ground: what every room may import.
GROUND = (
    "engine/processors",
    "engine/errors",
    "engine/types",
    "engine/atomic",
    "engine/progress",
    "engine/wording",
)
# Each room of the house, and the rooms that it may import beside itself and the ground. A file that is named here may
# import other rooms than the rest of its folder. ARCHITECTURE.md explains the table.
FOR_TRAINING = ("engine/datasets", "engine/pictures", "engine/blip2", "engine/checkpoints", "engine/models")
FOR_COMMANDS = ("ui/cli", "ui/session", "ui/reports")
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
    "training/loop": ("training/distributed", *FOR_TRAINING),
    "training/losses": ("training/loop", "training/distributed", *FOR_TRAINING),
    "training/batches": ("training/loop", "training/distributed", *FOR_TRAINING),
    "training/stages": (
        "training/batches", "training/losses", "training/loop", "training/distributed", *FOR_TRAINING,
    ),
    "training/capfilt": ("training/stages", "training/loop", "training/distributed", *FOR_TRAINING),
    "training/recipes": ("training/stages", "training/capfilt", "training/loop", *FOR_TRAINING),
    "ui/reports": ("engine/evaluation",),
    "ui/session": ("indexer", "engine/search", "engine/models", "engine/index"),
    "ui/cli": ("ui/session", "ui/reports"),
    "ui/cli/commands": FOR_COMMANDS,
    "ui/cli/commands/index_command": ("indexer", *FOR_COMMANDS),
    "ui/cli/commands/caption_command": ("engine/search", "engine/models", "engine/blip2", *FOR_COMMANDS),
    "ui/cli/commands/recall_command": ("engine/evaluation", "engine/datasets", "engine/models", *FOR_COMMANDS),
    "ui/cli/commands/evaluate_command": ("engine/evaluation", "engine/datasets", "engine/models", *FOR_COMMANDS),
    "ui/cli/commands/models_command": ("engine/checkpoints", "engine/models", "training/stages", *FOR_COMMANDS),
    "ui/cli/commands/train_command": (
        "training/recipes", "training/stages", "training/capfilt", "training/loop", *FOR_COMMANDS,
    ),
    "ui/page": ("ui/session", "ui/reports", "engine/search", "engine/models", "engine/index", "engine/pictures"),
}  # fmt: skip
# Files above the rooms that hold nothing but a docstring.
SIGNS = ("engine/__init__.py", "training/__init__.py", "ui/__init__.py")


def room_of(name: str) -> str | None:
    """The room of a module given as a path or as a dotted name; None for one that lies in no room."""
    path = name.removesuffix(".py").replace(".", "/")
    inside = [room for room in (*ROOMS, *GROUND) if path == room or path.startswith(room + "/")]
    return max(inside, key=len, default=None)


HEAVY = ("torch", "timm", "transformers", "lancedb", "lance", "pyarrow", "faiss", "streamlit", "pandas")
# Imported before anything is known of what is asked, or by every worker process.
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


@dataclass(frozen=True)
class Import:
    """file: relative to the root. name: dotted, from the root of its package."""

    file: str
    line: int
    name: str

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_bytes(), str(path))


def imports_of(file: str, tree: ast.AST) -> Iterator[Import]:
    """All of them, also inside functions and for type checkers; relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            parts = file.removesuffix(".py").split("/")[: -node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(file, node.lineno, f"{base}.{alias.name}")
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func)
            in (
                "import_module",
                "importlib.import_module",
            )
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield Import(file, node.lineno, str(node.args[0].value))


ALL = [one for file, tree in sources() for one in imports_of(file, tree)]


def turned_round(imports: list[Import]) -> list[str]:
    """Those that go against the arrows."""
    ours = [one for one in imports if one.package in FOLDERS or one.package == "tests"]
    return [str(one) for one in ours if one.package not in MAY_IMPORT[one.file.split("/")[0]]]


def calls_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def prints_or_exits(file: str, tree: ast.AST) -> list[str]:
    """Calls that print, write to a standard stream or exit, outside of ui.

    os._exit is not among them: a worker process whose parent has died has nobody to return to."""
    words = {"print", "input", "exit", "quit", "sys.exit"}
    streams = ("sys.stdout.", "sys.stderr.", "click.", "traceback.print")
    found = [
        f"{file}:{line} calls {name}"
        for line, name in calls_of(tree)
        if name in words or name.startswith(streams)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None and "SystemExit" in ast.unparse(node.exc):
            found.append(f"{file}:{node.lineno} raises SystemExit")
    return [] if file.startswith("ui/") else found


def test_all_sources_are_seen() -> None:
    files = {one.file for one in ALL}
    assert {
        "engine/search/searcher.py",
        "indexer/build.py",
        "training/loop/train_loop.py",
        "ui/cli/main.py",
    } <= files
    assert any(one.name == "torch" for one in ALL) and len(ALL) > 200


def test_arrows_point_one_way() -> None:
    assert not turned_round(ALL)


MOST_FILES, MOST_LINES, MOST_LINES_OF_A_FUNCTION = 15, 300, 45
LONGER_FUNCTIONS = {"training/loop/train_loop.py train"}  # ARCHITECTURE.md says why


def files_in_the_tree() -> tuple[set[str], set[str]]:
    """Read the tree of ARCHITECTURE.md: the names of files that are there, and of those that come later."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = page.split("## The tree")[1].split("\n    tests/")[0]
    there: set[str] = set()
    later: set[str] = set()
    for line in re.findall(r"^    .*$", tree, re.MULTILINE):
        now, _, then = line.partition("later")
        there |= set(re.findall(r"\w+\.py\b", now))
        later |= set(re.findall(r"\w+\.py\b", then))
    return there, later


def test_the_tree_of_the_architecture_page_is_the_tree() -> None:
    there, later = files_in_the_tree()
    files = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")} - {"__init__.py"}
    assert there - {"qseek.py"} == files
    assert later and not later & files


def test_folders_files_and_functions_stay_short() -> None:
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    too_many = [folder for folder in folders if len(list(folder.glob("[!_]*.py"))) > MOST_FILES]
    assert not too_many
    too_long, long_functions = [], set()
    for file, tree in sources():
        if len((ROOT / file).read_text(encoding="utf-8").splitlines()) > MOST_LINES:
            too_long.append(file)
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (node.end_lineno or node.lineno) - node.lineno >= MOST_LINES_OF_A_FUNCTION:
                long_functions.add(f"{file} {node.name}")
    assert not too_long
    assert long_functions == LONGER_FUNCTIONS


def outside_their_rooms(imports: list[Import]) -> list[str]:
    """Imports of a room that the table does not allow to the importing room."""
    strangers = []
    for statement in imports:
        room, imported = room_of(statement.file), room_of(statement.name)
        if room is None or imported is None or imported == room or imported in GROUND:
            continue
        if imported not in ROOMS.get(room, ()):
            strangers.append(str(statement))
    return strangers


def test_each_room_imports_what_the_table_allows() -> None:
    assert not outside_their_rooms(ALL)


def test_every_file_lies_in_a_room() -> None:
    files = [file for file, _ in sources() if file not in SIGNS]
    assert not [file for file in files if room_of(file) is None]
    assert {room_of(file) for file in files} >= {*ROOMS} - {*GROUND}


def test_a_sign_at_each_door_imports_nothing() -> None:
    for file, tree in sources():
        if file.endswith("__init__.py"):
            assert ast.get_docstring(tree), f"{file} has no docstring"
            assert len(tree.body) == 1, f"{file} holds more than its docstring"


def test_names_of_files_lead_to_one_place() -> None:
    paths = [path for folder in (*FOLDERS, "tests") for path in (ROOT / folder).rglob("*.py")]
    names = [path.name for path in paths if path.name not in ("__init__.py", "conftest.py")]
    assert not {name for name in names if names.count(name) > 1}


def test_each_library_has_its_owner() -> None:
    strangers = [
        str(one) for one in ALL if one.package in OWNERS and not one.file.startswith(OWNERS[one.package])
    ]
    assert not strangers
    for library in OWNERS.keys() - {"lance"}:  # lance comes with lancedb, and nobody needs it yet
        assert any(one.package == library for one in ALL), (
            f"nobody imports {library}: is the table above right?"
        )


def test_only_ui_prints_or_exits() -> None:
    assert not [found for file, tree in sources() for found in prints_or_exits(file, tree)]


def test_the_rules_can_fail() -> None:
    def turned(file: str, code: str) -> list[str]:
        return turned_round(list(imports_of(file, ast.parse(code))))

    assert turned("engine/search/searcher.py", "def f():\n    from indexer import scan")
    assert turned("engine/models/retrieval_model.py", "import training.loop.train_loop as loop")
    assert turned("indexer/build.py", "from ui.reports.text_forms import printable_text")
    assert turned("training/loop/train_loop.py", "import importlib\nimportlib.import_module('indexer.build')")
    assert turned("engine/index/store.py", "from ...ui import cli")
    assert not turned("engine/index/store.py", "from . import tables\nfrom ..errors import QseekError")

    def strangers(file: str, code: str) -> list[str]:
        return outside_their_rooms(list(imports_of(file, ast.parse(code))))

    assert strangers("engine/index/store.py", "def f():\n    from engine.blip2.config import mini")
    assert strangers("engine/errors.py", "from engine.blip2 import config")
    assert strangers("engine/vectors/deeper/one.py", "from ...models import loading")
    assert not strangers(
        "engine/vectors/one.py", "from engine.index.store import Store\nimport engine.errors"
    )
    assert not strangers("engine/index/store.py", "from engine.index import manifest")
    for code in (
        "print(1)",
        "sys.exit(2)",
        "def f():\n    raise SystemExit",
        "sys.stderr.write('x')",
        "exit()",
    ):
        assert prints_or_exits("engine/search/searcher.py", ast.parse(code))
        assert not prints_or_exits("ui/cli/main.py", ast.parse(code))


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_stay_light(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {LIGHT[module]!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []
