"""Keep FAISS segments in files that are published in one step and checked before they are used.

    <root>/current.json          the names of the segments, and the version of the table that they follow
    <root>/<name>/slot-NN.faiss  one file for each slot, beside ids.npy, and meta.json with sizes and checksums

LanceDB is the truth: whatever is wrong with these files, they are built again, and nobody gets an error.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.atomic import HALF_WRITTEN, create_folder, write_file
from engine.errors import IndexStateError
from engine.index.writer_lock import lock_folder
from engine.vectors.segments import Segment

_POINTER = "current.json"
_CHUNK = 1 << 24
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedSegments:
    """The published segments, mapped from their files. version: the version of the table that they follow."""

    version: int
    names: list[str]
    segments: list[Segment]


def load_segments(root: Path, num_slots: int, width: int, kind: str) -> SavedSegments | None:
    """Return the segments that were published last, None when there are none, or others, or damaged ones."""
    try:
        pointer = json.loads((root / _POINTER).read_bytes())
        if pointer["format"] != _format(num_slots, width, kind):
            return None
        names = [str(name) for name in pointer["segments"]]
        segments = [_read_segment(root / name, num_slots, width, kind) for name in names]
        return SavedSegments(int(pointer["version"]), names, segments)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError) as error:
        _log.info("The FAISS files at %s are built again: %s", root, error)
        return None


class SegmentWriter:
    """A writer of segments, which does nothing once something has failed, or when it cannot write.

    names: the published segments that it goes on from.
    """

    def __init__(self, root: Path, names: list[str], *, can_write: bool) -> None:
        self._root = root
        self._names = list(names)
        self._can_write = can_write

    def keep(self, segment: Segment) -> Segment:
        """Write a segment and return it mapped from its files; return it as it is when it cannot be written."""
        if not self._can_write:
            return segment
        name = f"{time.time_ns():x}"
        try:
            with create_folder(self._root / name) as half:
                _write_segment(half, segment)
            mapped = _read_segment(self._root / name, len(segment.slots), segment.slots[0].d, segment.kind)
        except (OSError, RuntimeError, ValueError) as error:
            _log.info("the FAISS files at %s are not kept: %s", self._root, error)
            self._can_write = False
            return segment
        self._names.append(name)
        return mapped

    def publish(self, version: int, num_slots: int, width: int, kind: str) -> None:
        """Publish the kept segments in one step, then remove the segments that are no longer named."""
        if not self._can_write:
            return
        pointer = {"version": version, "format": _format(num_slots, width, kind), "segments": self._names}
        try:
            write_file(self._root / _POINTER, json.dumps(pointer))
        except OSError as error:
            _log.info("the FAISS files at %s are not kept: %s", self._root, error)
            return
        _remove_others(self._root, set(self._names))


@contextmanager
def open_segment_writer(root: Path, names: list[str]) -> Iterator[SegmentWriter]:
    """Give a writer that goes on from published segments; only one process at a time gets a writer that can write."""
    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_folder(root))
        except (OSError, IndexStateError) as error:
            _log.info("the FAISS files at %s are not kept: %s", root, error)
            yield SegmentWriter(root, names, can_write=False)
            return
        _remove_half_written(root)
        yield SegmentWriter(root, names, can_write=True)


def _format(num_slots: int, width: int, kind: str) -> list[Any]:
    return [num_slots, width, kind]


def _write_segment(folder: Path, segment: Segment) -> None:
    paths = segment.write(folder)
    np.save(folder / "ids.npy", segment.ids)
    files = {}
    for path in [*paths, folder / "ids.npy"]:
        status = path.stat()
        files[path.name] = [status.st_size, status.st_mtime_ns, _checksum(path)]
    meta = {"rounding": segment.rounding, "files": files}
    (folder / "meta.json").write_text(json.dumps(meta))


def _read_segment(folder: Path, num_slots: int, width: int, kind: str) -> Segment:
    meta = json.loads((folder / "meta.json").read_bytes())
    for name, (size, mtime_ns, checksum) in meta["files"].items():
        status = (folder / name).stat()
        # A file is read only when something has touched it since, because reading all files takes seconds.
        touched = status.st_mtime_ns != mtime_ns
        if status.st_size != size or (touched and _checksum(folder / name) != checksum):
            raise ValueError(f"{folder / name} has changed since it was written.")
    ids = np.load(folder / "ids.npy", allow_pickle=False)
    return Segment.read(folder, num_slots, width, kind, ids, float(meta["rounding"]))


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _remove_half_written(root: Path) -> None:
    for path in root.glob(f"*{HALF_WRITTEN}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _remove_others(root: Path, names: set[str]) -> None:
    """Remove all segments but the named ones. A reader that has mapped a segment keeps its files until it closes
    them.
    """
    for path in root.iterdir():
        if path.is_dir() and path.name not in names:
            shutil.rmtree(path, ignore_errors=True)
