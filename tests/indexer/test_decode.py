"""Known photos are not decoded, outcomes keep their order, and workers import nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from corners import draw_quarters

from engine.errors import PhotoError
from indexer import decode as module
from indexer.decode import Decoded, DecodeJob, Known, decode, decode_jobs


def test_a_known_photo_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_quarters().save(tmp_path / "a.png")
    draw_quarters().rotate(90).save(tmp_path / "b.png")
    digest = decode(tmp_path / "a.png", 16).digest
    monkeypatch.setattr(module, "squash", lambda picture, size: pytest.fail("decoded"))
    assert decode_jobs([DecodeJob(tmp_path / "a.png", frozenset({digest, "another"}))], 16) == [Known(digest)]
    with pytest.raises(pytest.fail.Exception):
        decode_jobs([DecodeJob(tmp_path / "b.png", frozenset({digest}))], 16)


def test_several_tasks_keep_their_order_and_their_failures(tmp_path: Path) -> None:
    draw_quarters().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    first, second, third = decode_jobs(
        [DecodeJob(tmp_path / name) for name in ("a.png", "b.png", "a.png")], 16
    )
    assert isinstance(first, Decoded)
    assert isinstance(second, PhotoError)
    assert isinstance(third, Decoded)
    assert first.digest == third.digest


def test_workers_import_neither_torch_nor_lancedb() -> None:
    code = (
        "import sys, indexer.decode_pool; print({'torch', 'lancedb', 'lance', 'pyarrow'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
