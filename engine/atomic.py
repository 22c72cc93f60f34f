"""Write a file or a folder so that it is there whole or not at all, also after a kill or a power cut."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

HALF_WRITTEN = ".new"
"""Suffix of a file or folder that is not complete yet. A killed process leaves it; the next writer replaces it."""


@contextmanager
def replace_file(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `path` in one step when the block ends.

    Its bytes are on the disk before it does. When the block raises, `path` stays as it was and the half-written file is
    removed. shared: several processes or threads may write this file at once, the last of them counts; what one of them
    leaves when it is killed is then not replaced by the next. Raises OSError when the disk refuses.
    """
    writer = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    half = path.with_name(path.name + writer + HALF_WRITTEN)
    try:
        with open(half, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a whole file in one step, text as UTF-8; see `replace_file`."""
    with replace_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `path` in one step when the block ends; nothing may lie at `path`.

    The bytes of the files in it are on the disk before it does. When the block raises, nothing is left. Raises OSError
    when the disk refuses.
    """
    half = path.with_name(path.name + HALF_WRITTEN)
    shutil.rmtree(half, ignore_errors=True)
    try:
        half.mkdir()
        yield half
        for written in half.rglob("*"):
            if written.is_file():
                sync_file(written)
        os.replace(half, path)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Wait until the bytes of a file are on the disk."""
    with open(path, "rb+") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that (Windows cannot)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse to sync a folder
        pass
    finally:
        os.close(descriptor)
