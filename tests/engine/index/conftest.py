"""Fixtures that the tests of the store and its tables share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_rows import make_manifest

from engine.index.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield Store.create(tmp_path / "index", make_manifest())
