"""`qseek recall` measures a model on a set, reports numbers and pictures, and continues a stopped run."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny import tiny_checkpoint, write_pictures

from ui.cli.commands.recall_run import measure_peak_memory
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
    return write_json(tmp_path / "set.json", [make_row(word) for word in WORDS])


def make_row(word: str) -> dict[str, object]:
    return {"image": f"{word}.png", "caption": [f"a {word}", f"the {word} in the house"]}


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def run_recall(checkpoint: Path, images: Path, annotations: Path, tmp_path: Path):
    def run(*arguments: object, name: str = "made up") -> Result:
        options = [name, "--model", checkpoint, "--images", images, "--annotations", annotations]
        options += [] if "--no-cache" in arguments else ["--cache", tmp_path / "cache"]
        return CliRunner().invoke(main, ["recall", *map(os.fspath, options), *map(str, arguments)])

    return run


def test_the_report_is_a_markdown_table(run_recall) -> None:
    result = run_recall("--rerank", 3)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("made up, ") and lines[0].endswith("8 photos, 16 captions, percent")
    assert lines[2].startswith("| | TR@1 | TR@5 |")
    assert lines[4].startswith("| ITC alone | ") and lines[5].startswith("| reranked, k = 3 | ")
    assert "pairs/s" in lines[-1] and "GiB at the peak" in lines[-1]


def test_json_names_the_settings_of_the_run(run_recall) -> None:
    report = json.loads(run_recall("--json", "--rerank", 4, "--limit", 6).stdout)
    assert (report["unit"], report["k"], report["limit"], report["pixels"]) == ("percent", 4, 6, 32)
    assert (report["num_photos"], report["num_captions"]) == (6, 12)
    assert set(report["by_k"]) == {"1", "2", "4"} and report["by_k"]["4"] == report["after"]
    assert len(report["digest"]) > 10 and report["dtype"] in ("float32", "bfloat16")


def test_a_second_run_uses_what_the_first_has_kept(run_recall) -> None:
    first, second = run_recall("--rerank", 3), run_recall("--rerank", 3)
    assert first.stdout.splitlines()[:6] == second.stdout.splitlines()[:6]
    assert "kept from an earlier run" in second.stdout and "kept" not in first.stdout
    assert "kept" not in run_recall("--rerank", 3, "--no-cache").stdout


def test_more_candidates_than_photos_give_a_note(run_recall) -> None:
    result = run_recall("--rerank", 500)
    assert result.exit_code == 0 and "Note: --rerank is 500, but there are only 8 photos." in result.stderr


def test_missing_photos_are_refused_or_left_out(run_recall, images: Path) -> None:
    (images / "cat.png").unlink()
    (images / "dog.png").unlink()
    result = run_recall()
    assert result.exit_code == 1 and result.stdout == ""
    assert "2 of 8 photos could not be found in " in result.stderr
    assert (
        "  cat.png" in result.stderr and "  dog.png" in result.stderr and "--allow-missing" in result.stderr
    )
    result = run_recall("--allow-missing")
    assert result.exit_code == 0 and "**2 photos left out: not comparable**" in result.stdout


def test_a_photo_that_cannot_be_read_is_refused_or_left_out(run_recall, images: Path) -> None:
    (images / "cat.png").write_bytes(b"no picture")
    result = run_recall()
    assert result.exit_code == 1 and "1 of 8 photos could not be read:\n  cat.png" in result.stderr
    result = run_recall("--allow-missing")
    assert result.exit_code == 0 and "7 photos, 14 captions" in result.stdout
    assert "**1 photo left out" in result.stdout and "  cat.png" in result.stderr


def test_captions_of_another_set_are_refused(run_recall, annotations: Path) -> None:
    write_json(annotations, [{"image": "elsewhere.jpg", "caption": "a dog"}])
    result = run_recall("--allow-missing")
    assert result.exit_code == 1 and "another set" in result.stderr


def test_photos_without_captions_are_refused(run_recall, annotations: Path) -> None:
    write_json(annotations, [make_row("red"), {"image": "cat.png", "caption": [" "]}])
    result = run_recall()
    assert (
        result.exit_code == 1 and "1 of the 2 photos have no captions (the first is cat.png)" in result.stderr
    )


def test_a_set_may_have_one_caption_for_each_photo(run_recall, annotations: Path) -> None:
    write_json(annotations, [{"image": f"{word}.png", "caption": f"a {word}"} for word in WORDS])
    result = run_recall("--rerank", 2)
    assert result.exit_code == 0 and "8 photos, 8 captions" in result.stdout


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--memory", "lots"], 2, "is not an amount of memory"),
        (["--memory", "1K"], 1, "at least --memory"),
        (["--plot", "nowhere/a.png"], 1, "its folder is missing"),
        (["--plot", "a.docx"], 1, "should end in one of"),
        (["--no-cache", "--cache", "c"], 2, "Give only one of them."),
    ],
)
def test_wrong_options_are_refused_in_plain_words(
    run_recall, tmp_path: Path, monkeypatch, options: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_recall(*options)
    assert result.exit_code == code and words in result.stderr, result.output
    assert "Traceback" not in result.output


def test_a_name_without_annotations_says_what_is_needed() -> None:
    result = CliRunner().invoke(main, ["recall", "flickr30k"])
    assert (
        result.exit_code == 1 and "--annotations FILE" in result.stderr and "--images FOLDER" in result.stderr
    )


def test_published_numbers_are_shown_only_beside_the_same_number_of_photos(run_recall, monkeypatch) -> None:
    assert "published" not in run_recall(name="flickr30k").stdout
    monkeypatch.setitem(recall_report.SIZES, "flickr30k", 8)
    lines = run_recall(name="flickr30k").stdout.splitlines()
    assert "| BLIP-2 ViT-g, published | 97.6 | 100.0 | 100.0 | 89.7 | 98.1 | 98.9 |  |  |  |" in lines


def test_the_plot_is_drawn(run_recall, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "plot.png"
    assert run_recall("--rerank", 4, "--plot", path).exit_code == 0
    assert Image.open(path).size[0] > 800


def test_the_page_of_errors_shows_the_worst_misses(run_recall, tmp_path: Path) -> None:
    path = tmp_path / "errors.html"
    result = run_recall("--rerank", 4, "--errors", 3, "--errors-page", path, "--json")
    assert result.exit_code == 0
    page = path.read_text()
    missed = round(len(WORDS) * 2 * (1 - json.loads(result.stdout)["after"]["IR@1"] / 100))
    assert page.count("<tr>") == min(3, missed) > 0
    assert page.count('class="right"') >= page.count("<tr>") and "data:image/jpeg;base64," in page


def test_progress_is_shown_in_the_words_of_indexing(run_recall) -> None:
    output = run_recall("--rerank", 3).stderr
    assert "8 of 8 photos, " in output and re.search(r"(\d+) of \1 pairs, .* pairs/s", output)


def test_peak_memory_that_cannot_be_known_is_left_out(run_recall, monkeypatch) -> None:
    assert (measure_peak_memory() or 0) > 2**20
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows has no such module
    assert measure_peak_memory() is None
    assert "at the peak" not in run_recall("--rerank", 3).stdout
    assert json.loads(run_recall("--rerank", 3, "--json").stdout)["peak_bytes"] is None
