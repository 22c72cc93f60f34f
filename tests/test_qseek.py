"""`import qseek` gives the public names and loads nothing heavy; the example in its docstring runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

import qseek

ROOT = Path(__file__).parents[1]
PUBLIC = {
    "Caption", "CheckpointError", "DataError", "Failure", "Hit", "IndexStateError", "Photo", "PhotoError", "QseekError",
    "QueryError", "Results", "Searcher", "Store", "TextHit", "TextResults", "TrainingError", "build_index", "itc_loss",
    "itg_loss", "itm_loss", "load_captioner", "load_model", "open_index", "open_picture",
}  # fmt: skip


def test_the_public_names_are_these() -> None:
    """Compare the names with a list: removing one breaks other people's programs, so that a change is a decision."""
    assert set(qseek.__all__) == PUBLIC
    assert set(dir(qseek)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_name_is_loaded_and_documented(name: str) -> None:
    value = getattr(qseek, name)
    assert value.__doc__ and value.__module__.split(".")[0] in ("engine", "indexer", "training", "ui")


def test_an_error_about_an_unknown_name_lists_the_public_names() -> None:
    with pytest.raises(AttributeError, match=r"'find_photos'; it has Caption, .*, open_picture$"):
        qseek.find_photos  # noqa: B018


def test_the_version_is_written_in_one_file() -> None:
    assert version("qseek") == qseek.__version__
    assert f'version = "{qseek.__version__}"' not in (ROOT / "pyproject.toml").read_text()


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, qseek; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "PIL", "lancedb", "faiss", "transformers", "timm", "click", "engine", "ui"}
    assert not heavy & set(done.stdout.split())


def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    """Run it with the bundled model, in a process of its own, on four pictures of one colour each."""
    assert qseek.__doc__
    example = textwrap.dedent(re.split(r"\n(?=\S)", qseek.__doc__.split("\n\n", 1)[1])[0])
    assert example.startswith("import qseek\n")
    (tmp_path / "photos").mkdir()
    for colour in ("red", "green", "blue", "white"):
        Image.new("RGB", (160, 120), colour).save(tmp_path / "photos" / f"{colour}.png")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", example],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *hits, shape = done.stdout.splitlines()
    assert [line.split()[0] for line in hits] == ["1", "2", "3"] and shape == "(2, 256)"
    assert all(str(tmp_path / "photos") in line for line in hits)
    assert (tmp_path / "photos.index" / "manifest.json").is_file()


def test_a_photo_that_cannot_be_read_is_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (160, 120), "red").save(tmp_path / "photos" / "red.png")
    (tmp_path / "photos" / "text.jpg").write_text("no picture")
    seen: list[tuple[int, int, int]] = []
    report = qseek.build_index(
        [tmp_path / "photos"],
        tmp_path / "index",
        workers=0,
        on_progress=lambda progress: seen.append((progress.done, progress.total, progress.failed)),
    )
    assert report.photos is not None and report.captions is None
    assert [failure.path.name for failure in report.photos.failed] == ["text.jpg"]
    assert seen[0] == (0, 2, 0) and seen[-1] == (2, 2, 1)
    assert len(qseek.open_index(tmp_path / "index").search("red", top=5).hits) == 1


def test_without_an_index_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        qseek.IndexStateError, match=r"There is no index at .*. Make one with `qseek index FOLDER`"
    ):
        qseek.open_index(tmp_path / "none")
    with pytest.raises(qseek.QueryError, match="There are no photos in"):
        (tmp_path / "empty").mkdir()
        qseek.build_index([tmp_path / "empty"], tmp_path / "index")
