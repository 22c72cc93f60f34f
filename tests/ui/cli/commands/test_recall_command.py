"""qseek recall as people run it: their layouts, what is missing, reports, pictures, and going on."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny import tiny_checkpoint, write_pictures

from ui.cli.commands.recall_command import peak_memory
from ui.cli.main import main
from ui.reports import recall_report

WORDS = ("red", "green", "blue", "dog", "cat", "snow", "house", "runs")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", [f"{word}.png" for word in WORDS])
    return tmp_path / "images"


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write(tmp_path / "set.json", [row(word) for word in WORDS])


def row(word: str) -> dict[str, object]:
    return {"image": f"{word}.png", "caption": [f"a {word}", f"the {word} in the house"]}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def recall(checkpoint: Path, images: Path, annotations: Path, tmp_path: Path):
    def run(*arguments: object, name: str = "made up") -> Result:
        given = [name, "--model", checkpoint, "--images", images, "--annotations", annotations]
        given += [] if "--no-cache" in arguments else ["--cache", tmp_path / "cache"]
        return CliRunner().invoke(main, ["recall", *map(os.fspath, given), *map(str, arguments)])

    return run


def test_markdown(recall) -> None:
    result = recall("--rerank", 3)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("made up, ") and lines[0].endswith("8 photos, 16 captions, percent")
    assert lines[2].startswith("| | TR@1 | TR@5 |")
    assert lines[4].startswith("| ITC alone | ") and lines[5].startswith("| reranked, k = 3 | ")
    assert "pairs/s" in lines[-1] and "GiB at the peak" in lines[-1]


def test_json_says_what_it_was(recall) -> None:
    report = json.loads(recall("--json", "--rerank", 4, "--limit", 6).stdout)
    assert (report["unit"], report["k"], report["limit"], report["pixels"]) == ("percent", 4, 6, 32)
    assert (report["num_photos"], report["num_captions"]) == (6, 12)
    assert set(report["by_k"]) == {"1", "2", "4"} and report["by_k"]["4"] == report["after"]
    assert len(report["digest"]) > 10 and report["dtype"] in ("float32", "bfloat16")


def test_it_goes_on_and_says_so(recall) -> None:
    first, second = recall("--rerank", 3), recall("--rerank", 3)
    assert first.stdout.splitlines()[:6] == second.stdout.splitlines()[:6]
    assert "kept from an earlier run" in second.stdout and "kept" not in first.stdout
    assert "kept" not in recall("--rerank", 3, "--no-cache").stdout


def test_more_candidates_than_photos(recall) -> None:
    result = recall("--rerank", 500)
    assert result.exit_code == 0 and "500 candidates are asked for, there are 8 photos" in result.stderr


def test_missing_photos_are_an_error(recall, images: Path) -> None:
    (images / "cat.png").unlink()
    (images / "dog.png").unlink()
    result = recall()
    assert result.exit_code == 1 and result.stdout == ""
    assert "2 of 8 photos not below" in result.stderr
    assert (
        "  cat.png" in result.stderr and "  dog.png" in result.stderr and "--allow-missing" in result.stderr
    )
    result = recall("--allow-missing")
    assert result.exit_code == 0 and "**2 photos left out: not comparable**" in result.stdout


def test_a_photo_that_does_not_decode_is_an_error(recall, images: Path) -> None:
    (images / "cat.png").write_bytes(b"no picture")
    result = recall()
    assert result.exit_code == 1 and "1 of 8 photos could not be read:\n  cat.png" in result.stderr
    result = recall("--allow-missing")
    assert result.exit_code == 0 and "7 photos, 14 captions" in result.stdout
    assert "**1 photo left out" in result.stdout and "  cat.png" in result.stderr


def test_captions_of_another_set(recall, annotations: Path) -> None:
    write(annotations, [{"image": "elsewhere.jpg", "caption": "a dog"}])
    result = recall("--allow-missing")
    assert result.exit_code == 1 and "another set" in result.stderr


def test_photos_without_captions(recall, annotations: Path) -> None:
    write(annotations, [row("red"), {"image": "cat.png", "caption": [" "]}])
    result = recall()
    assert result.exit_code == 1 and "1 of 2 pictures have no captions (first: cat.png)" in result.stderr


def test_one_caption_a_photo(recall, annotations: Path) -> None:
    write(annotations, [{"image": f"{word}.png", "caption": f"a {word}"} for word in WORDS])
    result = recall("--rerank", 2)
    assert result.exit_code == 0 and "8 photos, 8 captions" in result.stdout


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--memory", "lots"], 2, "no amount of memory"),
        (["--memory", "1K"], 1, "at least --memory"),
        (["--plot", "nowhere/a.png"], 1, "its folder is not there"),
        (["--plot", "a.docx"], 1, "should end in one of"),
        (["--no-cache", "--cache", "c"], 2, "give one of them"),
    ],
)
def test_bad_options(recall, tmp_path: Path, monkeypatch, options: list[str], code: int, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = recall(*options)
    assert result.exit_code == code and words in result.stderr, result.output
    assert "Traceback" not in result.output


def test_a_name_alone_says_what_is_needed() -> None:
    result = CliRunner().invoke(main, ["recall", "flickr30k"])
    assert (
        result.exit_code == 1 and "--annotations FILE" in result.stderr and "--images FOLDER" in result.stderr
    )


def test_published_rows_stand_beside_the_same_gallery_alone(recall, monkeypatch) -> None:
    assert "published" not in recall(name="flickr30k").stdout
    monkeypatch.setitem(recall_report.SIZES, "flickr30k", 8)
    lines = recall(name="flickr30k").stdout.splitlines()
    assert "| BLIP-2 ViT-g, published | 97.6 | 100.0 | 100.0 | 89.7 | 98.1 | 98.9 |  |  |  |" in lines


def test_the_picture(recall, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "plot.png"
    assert recall("--rerank", 4, "--plot", path).exit_code == 0
    assert Image.open(path).size[0] > 800


def test_the_page_of_errors(recall, tmp_path: Path) -> None:
    path = tmp_path / "errors.html"
    result = recall("--rerank", 4, "--errors", 3, "--errors-page", path, "--json")
    assert result.exit_code == 0
    page = path.read_text()
    missed = round(len(WORDS) * 2 * (1 - json.loads(result.stdout)["after"]["IR@1"] / 100))
    assert page.count("<tr>") == min(3, missed) > 0
    assert page.count('class="right"') >= page.count("<tr>") and "data:image/jpeg;base64," in page


def test_progress_is_shown_as_indexing_shows_it(recall) -> None:
    said = recall("--rerank", 3).stderr
    assert "8 of 8 photos, " in said and re.search(r"(\d+) of \1 pairs, .* pairs/s", said)


def test_memory_that_cannot_be_known_is_left_out(recall, monkeypatch) -> None:
    assert (peak_memory() or 0) > 2**20
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_memory() is None
    assert "at the peak" not in recall("--rerank", 3).stdout
    assert json.loads(recall("--rerank", 3, "--json").stdout)["peak_bytes"] is None
