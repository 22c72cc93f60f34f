"""Fixtures that the tests of the indexer share."""

from __future__ import annotations

from pathlib import Path

import pytest
from mean_colour import MANIFEST

from engine.index.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "index", MANIFEST)
