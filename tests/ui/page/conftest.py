"""Fixtures for the page: the colour model, and an index of four photos."""

from __future__ import annotations

import pytest
from fake_model import (
    FakeModel,
    choose_fake_captioner,
    load_fake_captioner,
    load_fake_model,
    make_fake_searcher,
)
from PIL import Image

from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.models.photo_encoder import PhotoEncoder
from indexer.build import build_index
from ui import session

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "orange": (255, 128, 0)}


@pytest.fixture(autouse=True)
def colours(monkeypatch, tmp_path):
    """Put the colour model in the place of BLIP-2, and the index into a folder of the test."""
    import streamlit

    streamlit.cache_data.clear()
    streamlit.cache_resource.clear()
    monkeypatch.setattr(session, "load_model", load_fake_model)
    monkeypatch.setattr(session, "make_searcher", make_fake_searcher)
    monkeypatch.setattr(session, "load_photo_captioner", load_fake_captioner)
    monkeypatch.setattr(session, "choose_captioner", choose_fake_captioner)
    monkeypatch.delenv("QSEEK_CAPTION_MODEL", raising=False)
    monkeypatch.setenv("QSEEK_INDEX", str(tmp_path / "index"))
    monkeypatch.delenv("QSEEK_MODEL", raising=False)


@pytest.fixture
def index(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def store(tmp_path, index):
    """Return the store of an index of four photos, each of one colour."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (320, 240), colour).save(photos / f"{name}.png")
    store = Store.create(index, Manifest.for_model(FakeModel(), "none"))
    build_index([photos], store, PhotoEncoder(FakeModel(), "none"), workers=0)
    return store
