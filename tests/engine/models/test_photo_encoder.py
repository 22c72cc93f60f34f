"""The encoder of photos gives the same vectors with and without threads, and closes its threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SIDE, tiny_model

from engine.models.photo_encoder import PhotoEncoder


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let PyTorch use two threads, from which on an encoder has streams; the other tests run with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("features", ["store", "none"])
@pytest.mark.parametrize("count", [1, 2, 21])
def test_streams_encode_as_one_pass_does(tmp_path: Path, features: str, count: int) -> None:
    """Threads give the same vectors and patches, and leave the number of threads of other work as it was."""
    model = tiny_model(tmp_path / "tiny")
    pictures = np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    encoder = PhotoEncoder(model, features)
    assert encoder.streams is not None
    threads = torch.get_num_threads()
    vectors, rows = encoder.encode(pictures)
    assert torch.get_num_threads() == threads
    encoder.streams = None
    want, want_rows = encoder.encode(pictures)
    np.testing.assert_allclose(vectors.astype(np.float32), want.astype(np.float32), atol=2e-3)
    assert len(vectors) == count and (rows is None) == (want_rows is None) == (features == "none")
    if rows is not None and want_rows is not None:
        actual = np.stack([np.frombuffer(row, np.float16) for row in rows]).astype(np.float32)
        expected = np.stack([np.frombuffer(row, np.float16) for row in want_rows]).astype(np.float32)
        np.testing.assert_allclose(actual, expected, atol=5e-3)


@pytest.mark.usefixtures("two_threads")
def test_its_threads_end_with_it(tmp_path: Path) -> None:
    pictures = np.zeros((4, SIDE, SIDE, 3), np.uint8)
    before = {*threading.enumerate()}
    with PhotoEncoder(tiny_model(tmp_path / "tiny"), "none") as encoder:
        encoder.encode(pictures)
        started = {*threading.enumerate()} - before
        assert started
    assert not any(thread.is_alive() for thread in started)
    with pytest.raises(RuntimeError, match="shutdown"):
        encoder.encode(pictures)


def test_one_thread_has_no_streams(tmp_path: Path) -> None:
    assert torch.get_num_threads() == 1, "tests/conftest.py sets one thread"
    assert PhotoEncoder(tiny_model(tmp_path / "tiny"), "none").streams is None
