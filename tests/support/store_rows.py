"""Make rows for a store, each from a number: photos, files, failures; and a manifest."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from engine.index.manifest import Manifest
from engine.index.path_table import FailureRecord, FileRecord
from engine.index.photo_table import NewPhoto
from engine.index.store import Store

Q, E = 4, 8
ROOT = Path("/photos")
REPOSITORY = Path(__file__).parents[2]


def make_manifest(**changes: Any) -> Manifest:
    """Return the manifest of an index of the model "mini". changes: fields that differ."""
    values = {
        "model": "mini",
        "model_digest": "aa",
        "image_size": 160,
        "preprocessing": "squash",
        "num_queries": Q,
        "embed_dim": E,
        "patch_shape": (3, 5),
        "features": "store",
    }
    return Manifest(**{**values, **changes})


def make_photo(number: int, features: bytes | None = None) -> NewPhoto:
    """Return a photo with a digest, size and random vectors (Q, E) that belong to the number."""
    vectors = np.random.default_rng(number).standard_normal((Q, E)).astype(np.float16)
    return NewPhoto(f"{number:032x}", 100 + number, 200 + number, vectors, features)


def make_file(number: int, name: str | None = None, root: Path = ROOT, missing: bool = False) -> FileRecord:
    """Return the record of a file below `root` whose content is the photo of the number."""
    path = root / (name or f"{number}.jpg")
    return FileRecord(root, path, 1000 + number, 2000 + number, f"{number:032x}", missing)


def make_failure(name: str, reason: str = "it is empty") -> FailureRecord:
    """Return the record of a file that could not be read."""
    return FailureRecord(ROOT, ROOT / name, 0, 7, reason)


def fill_store(store: Store, count: int = 5) -> Store:
    """Add the photos and files of the numbers below `count`; return the store."""
    store.add([make_photo(n) for n in range(count)], [make_file(n) for n in range(count)], [])
    return store


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh Python process in the root of the repository. args: its sys.argv[1:]."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
