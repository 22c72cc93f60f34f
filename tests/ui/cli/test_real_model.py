"""The bundled model finds painted pictures through every command that searches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import parse_json_lines, qseek
from PIL import Image, ImageDraw

SIZE = (320, 240)
QUESTIONS = {
    "green grass": "grass",
    "a beach by the ocean": "beach",
    "the moon at night": "night",
    "a red ball on the grass": "ball",
    "something red": "red",
}
"""The name of the picture that fits each text best."""


def paint_meadow() -> Image.Image:
    """Paint green noise, which is what grass is from afar."""
    noise_HWC = np.random.default_rng(0).normal(0, 25, (SIZE[1], SIZE[0], 3))
    return Image.fromarray(np.clip(np.array([60, 140, 40]) + noise_HWC, 0, 255).astype(np.uint8))


def paint_beach() -> Image.Image:
    """Paint a blue sky above the sea and sand."""
    picture = Image.new("RGB", SIZE, (130, 190, 240))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 90, *SIZE), fill=(40, 120, 180))
    draw.rectangle((0, 150, *SIZE), fill=(225, 200, 150))
    return picture


def paint_night() -> Image.Image:
    """Paint a bright disc on a dark sky with stars."""
    picture = Image.new("RGB", SIZE, (8, 8, 20))
    draw = ImageDraw.Draw(picture)
    for x, y in np.random.default_rng(0).integers(0, SIZE[1], (40, 2)):
        draw.point((int(x), int(y)), fill=(255, 255, 255))
    draw.ellipse((230, 30, 280, 80), fill=(250, 245, 210))
    return picture


def paint_ball() -> Image.Image:
    """Paint a red disc on green."""
    picture = Image.new("RGB", SIZE, (70, 150, 60))
    ImageDraw.Draw(picture).ellipse((110, 70, 210, 170), fill=(220, 30, 30))
    return picture


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "grass": paint_meadow,
    "beach": paint_beach,
    "night": paint_night,
    "ball": paint_ball,
    "red": lambda: Image.new("RGB", SIZE, (200, 30, 30)),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of five pictures, indexed with the bundled model in the folder `index` beside it."""
    root = tmp_path_factory.mktemp("real")
    folder = root / "photos"
    folder.mkdir()
    for name, paint in PICTURES.items():
        paint().save(folder / f"{name}.png")
    done = qseek("index", folder, "--index", root / "index", "--json")
    assert done.exit_code == 0, done.stderr
    assert parse_json_lines(done)[0]["added"] == len(PICTURES) and parse_json_lines(done)[0]["failed"] == 0
    return folder


def ask(photos: Path, *arguments: object, stdin: bytes | None = None) -> list[dict[str, Any]]:
    """Run a command on the index, check the ranks, order and ranges of its JSON rows, and return them."""
    done = qseek(*arguments, "--index", photos.parent / "index", "--json", stdin=stdin)
    assert done.exit_code == 0, done.stderr
    rows = parse_json_lines(done)
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert all(-1 <= row["itc"] <= 1 for row in rows)
    assert all(row["itm"] is None or 0 <= row["itm"] <= 1 for row in rows)
    return rows


def list_names(rows: list[dict[str, Any]]) -> list[str]:
    return [Path(row["path"]).stem for row in rows]


@pytest.mark.parametrize(("text", "name"), QUESTIONS.items())
def test_search_finds_the_picture_that_fits(photos: Path, text: str, name: str) -> None:
    rows = ask(photos, "search", text, "-k", 5)
    assert list_names(rows)[0] == name and sorted(list_names(rows)) == sorted(PICTURES)
    assert all(row["itm"] is not None for row in rows)
    assert rows[0]["score"] > rows[1]["score"] + 0.03
    assert rows[0]["itc"] > 0.5 > rows[-1]["itc"]


def test_search_without_reranking_orders_by_cosine(photos: Path) -> None:
    rows = ask(photos, "search", "green grass", "--no-rerank", "-k", 2)
    assert len(rows) == 2 and list_names(rows)[0] == "grass"
    assert all(row["itm"] is None and row["score"] == row["itc"] for row in rows)


def test_rerank_orders_the_pictures_that_it_is_given(photos: Path) -> None:
    paths = [photos / f"{name}.png" for name in ("red", "grass", "ball")]
    rows = ask(photos, "rerank", "a red ball on the grass", stdin="\n".join(map(str, paths)).encode())
    assert list_names(rows)[0] == "ball" and sorted(list_names(rows)) == ["ball", "grass", "red"]
    assert rows[0]["itm"] > 0.5 > rows[1]["itm"]


def test_similar_finds_pictures_that_look_alike(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes((photos / "beach.png").read_bytes())
    rows = ask(photos, "similar", tmp_path / "holiday.png", "-k", 3)
    assert list_names(rows)[0] == "beach" and rows[0]["itc"] == pytest.approx(1, abs=0.01)
    assert all(row["itm"] is None for row in rows) and rows[1]["itc"] < 0.95


def test_match_orders_texts_by_how_well_they_fit(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("\n".join(QUESTIONS))
    rows = ask(photos, "match", photos / "ball.png", "--texts", tmp_path / "texts")
    assert rows[0]["text"] == "a red ball on the grass" and rows[0]["itm"] > 0.5
    assert {row["text"] for row in rows} == set(QUESTIONS)
