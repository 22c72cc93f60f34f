"""Small models that tests of several rooms of the engine share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_checkpoint
from tiny_language import KINDS, save_tiny_captioner

from engine.models import catalogue
from engine.models.caption_model import CaptionModel
from engine.models.loading import load_captioner


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CaptionModel:
    folder = save_tiny_captioner(request.param, tmp_path_factory.mktemp(request.param))
    return load_captioner(str(folder), device="cpu", dtype="float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder for the user's models, and hide the bundled models."""
    monkeypatch.setenv("QSEEK_MODELS", str(tmp_path / "own"))
    monkeypatch.setattr(catalogue, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "own").mkdir()
    (tmp_path / "bundled").mkdir()
    return tmp_path / "own"
