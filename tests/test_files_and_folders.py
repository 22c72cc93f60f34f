"""Files and functions stay short, folders small, names unique; ARCHITECTURE.md draws the tree that is there."""

from __future__ import annotations

import ast
import re

from project_files import FOLDERS, ROOT, list_files, parse_files

MAX_FILES_IN_A_FOLDER, MAX_LINES_OF_A_FILE, MAX_LINES_OF_A_FUNCTION = 15, 300, 45
LONGER_FUNCTIONS = {"training/loop/train_loop.py train"}  # ARCHITECTURE.md gives the reason.


def read_file_names_of_the_page() -> tuple[set[str], set[str]]:
    """Read the tree of ARCHITECTURE.md: return the names of files that exist, and of files that are planned."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = page.split("## The tree")[1].split("\n    tests/")[0]
    existing: set[str] = set()
    planned: set[str] = set()
    for line in re.findall(r"^    .*$", tree, re.MULTILINE):
        before, _, after = line.partition("later")
        existing |= set(re.findall(r"\w+\.py\b", before))
        planned |= set(re.findall(r"\w+\.py\b", after))
    return existing, planned


def test_the_tree_of_the_architecture_page_names_every_file() -> None:
    existing, planned = read_file_names_of_the_page()
    files = {path.name for path in list_files()} - {"__init__.py"}
    assert existing - {"qseek.py"} == files
    assert planned and not planned & files


def test_folders_hold_few_files() -> None:
    folders = {path.parent for path in list_files()}
    assert not [folder for folder in folders if len(list(folder.glob("[!_]*.py"))) > MAX_FILES_IN_A_FOLDER]


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in list_files()}
    assert not [path for path, length in lengths.items() if length > MAX_LINES_OF_A_FILE]


def test_functions_are_short() -> None:
    long_functions = {
        f"{file} {node.name}"
        for file, tree in parse_files()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= MAX_LINES_OF_A_FUNCTION
    }
    assert long_functions == LONGER_FUNCTIONS


def test_the_sign_of_each_folder_is_a_docstring_and_imports_nothing() -> None:
    for file, tree in parse_files():
        if file.endswith("__init__.py"):
            assert ast.get_docstring(tree), f"{file} has no docstring"
            assert len(tree.body) == 1, f"{file} holds more than its docstring"


def test_no_two_files_have_the_same_name() -> None:
    paths = [path for folder in (*FOLDERS, "tests") for path in (ROOT / folder).rglob("*.py")]
    names = [path.name for path in paths if path.name not in ("__init__.py", "conftest.py")]
    assert not {name for name in names if names.count(name) > 1}
