"""Fixtures for the command line: the colour model, photos of one colour each, and an index of them."""

from __future__ import annotations

import pytest
from command_line import BLUE, GREEN, ORANGE, RED, paint, qseek
from fake_model import load_fake_model, make_fake_searcher

from ui import session


@pytest.fixture
def colours(monkeypatch, tmp_path):
    """Put the colour model in the place of BLIP-2, and the index into a folder of the test."""
    monkeypatch.setattr(session, "load_model", load_fake_model)
    monkeypatch.setattr(session, "make_searcher", make_fake_searcher)
    monkeypatch.setenv("QSEEK_INDEX", str(tmp_path / "index"))
    monkeypatch.delenv("QSEEK_MODEL", raising=False)


@pytest.fixture
def photos(tmp_path):
    """Return a folder with four photos of one colour each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in {"red": RED, "green": GREEN, "blue": BLUE, "orange": ORANGE}.items():
        paint(folder / f"{name}.png", colour)
    return folder


@pytest.fixture
def indexed(photos):
    """Return the folder of the photos after they were indexed."""
    assert qseek("index", photos).exit_code == 0
    return photos
