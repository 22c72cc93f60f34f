"""Pictures are read in batches in their order, none is drawn ahead, and a photo may lie at several places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import PhotoError
from engine.pictures.opening import read_first_readable
from engine.pictures.picture_batches import read_batches, read_squares
from engine.types import Failure


def test_a_batch_is_read_when_it_is_asked_for() -> None:
    drawn: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(7):
            drawn.append(number)
            yield number

    batches = read_batches(numbers(), lambda number: number * number, 3)
    assert drawn == []
    assert next(batches) == [0, 1, 4] and drawn == [0, 1, 2]
    assert list(batches) == [[9, 16, 25], [36]]


def test_what_reading_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(read_batches([1, 0], lambda number: 1 / number, 2))


def test_squares_and_failures_keep_their_places(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        Image.new("RGB", (20, 10), name).save(tmp_path / f"{name}.png")
    gone = tmp_path / "gone.png"
    photos = [[tmp_path / "red.png"], [gone], [gone, tmp_path / "blue.png"]]
    (red, failure), (blue,) = read_squares(photos, 4, 2)
    assert isinstance(red, np.ndarray) and red.shape == (4, 4, 3) and (red == [255, 0, 0]).all()
    assert failure == Failure(gone, "it is no longer there")
    assert isinstance(blue, np.ndarray) and (blue == [0, 0, 255]).all()


def test_the_reason_is_the_first_files(tmp_path: Path) -> None:
    tried: list[Path] = []

    def refuse(path: Path) -> int:
        tried.append(path)
        raise PhotoError(f"{path.name} is bad")

    paths = [tmp_path / "a", tmp_path / "b"]
    assert read_first_readable(paths, refuse) == Failure(paths[0], "a is bad") and tried == paths
    assert read_first_readable(paths, lambda path: path.name) == "a"
