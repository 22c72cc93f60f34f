"""Fixtures: the devices of an index, and a store of 40 photos that counts the rows that are read from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
from brute_force_slots import E, FakeGpuIndex, S
from vectors_on_disk import add_random_photos

from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.vectors import gpu_slots


@pytest.fixture(params=["cpu", "like a gpu", "gpu"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        return "cpu"
    if request.param == "gpu" and faiss.get_num_gpus() == 0:
        pytest.skip("no GPU here")
    if request.param == "like a gpu":
        monkeypatch.setattr(gpu_slots, "_new_resources", object)
        monkeypatch.setattr(gpu_slots, "_new_index", lambda resources, width, kind: FakeGpuIndex(width))
    return "gpu"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    manifest = Manifest("mini", "aa", 160, "squash", S, E, (3, 5))
    return add_random_photos(Store.create(tmp_path / "index", manifest), 40)


@pytest.fixture
def rows_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each batch adds how many rows it took from the table to build an index."""
    counts: list[int] = []
    batches = store.iterate_vectors

    def counted(after_id: int = -1, batch: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ids, part in batches(after_id, batch):
            counts.append(len(ids))
            yield ids, part

    monkeypatch.setattr(store, "iterate_vectors", counted)
    return counts
