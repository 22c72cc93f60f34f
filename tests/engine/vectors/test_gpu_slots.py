"""Hits that a GPU cannot give are found on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from brute_force_slots import (
    FakeGpuIndex,
    assert_same_hits,
    compute_photo_vectors,
    compute_text_vectors,
    make_slot_index,
    rank_by_maximum,
)

from engine.vectors import gpu_slots


def test_more_hits_than_a_gpu_gives_come_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_slots, "_new_resources", object)
    monkeypatch.setattr(gpu_slots, "_new_index", lambda resources, width, kind: FakeGpuIndex(width))
    monkeypatch.setattr(gpu_slots, "MAX_HITS", 64)
    photos, query = compute_photo_vectors(400), compute_text_vectors(1)
    ids = np.arange(400)
    index = make_slot_index("fp16", ids, photos, "gpu")
    copy = index._device
    assert copy is not None
    few = np.arange(0, 400, 8)
    for allowed in (None, few, np.arange(100, 390), None):
        for k in (3, 40, 200):
            hits = index.search(query, k, allowed)
            assert_same_hits((hits[0][0], hits[1][0]), rank_by_maximum(ids, photos, query[0], k, allowed))
    index.search(query, 3, few)  # 350 hidden rows do not fit below the limit: the copy leaves them out
    assert copy._rows.tolist() == few.tolist()
    index.search(query, 3, np.arange(60))
    assert set(range(60)) <= set(copy._rows.tolist())


def test_a_gpu_without_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("cudaMalloc error out of memory")

    monkeypatch.setattr(gpu_slots, "_new_resources", full)
    photos, query = compute_photo_vectors(30), compute_text_vectors(1)
    index = make_slot_index("fp16", np.arange(30), photos, "gpu")
    hits = index.search(query, 4)
    assert_same_hits((hits[0][0], hits[1][0]), rank_by_maximum(np.arange(30), photos, query[0], 4))
