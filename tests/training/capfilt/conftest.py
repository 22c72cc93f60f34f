"""Fixtures of the tests of CapFilt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from capfilt_runs import ORIGINAL_CAPTIONS
from shard_writing import write_shard
from tiny import tiny_checkpoint, write_pictures


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Return a folder with data/ (seven photos without captions in two shards, three with captions) and runs/tiny."""
    names = [f"{letter}.png" for letter in "abcdefgxyz"]
    photos = [path.read_bytes() for path in write_pictures(tmp_path / "photos", names)]
    data = tmp_path / "data"
    data.mkdir()
    write_shard(data / "plain-000.tar", dict(zip(names[:4], photos[:4], strict=True)))
    write_shard(data / "plain-001.tar", dict(zip(names[4:7], photos[4:7], strict=True)))
    members = {}
    for name, photo, texts in zip(names[7:], photos[7:], ORIGINAL_CAPTIONS, strict=True):
        members |= {name: photo, name.replace("png", "json"): json.dumps({"captions": texts}).encode()}
    write_shard(data / "own-000.tar", members)
    tiny_checkpoint(tmp_path / "runs" / "tiny" / "model")
    return tmp_path
