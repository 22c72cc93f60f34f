"""Write a file or a folder so that it is there as a whole or not at all, even after a kill or a power cut."""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

HALF_WRITTEN = ".new"
"""Suffix of a file or folder that is not complete yet. A killed process leaves it; the next writer replaces it."""
REPLACED = ".old"
"""Suffix of a folder while another one takes its place."""


@contextmanager
def replace_file(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `path` in one step when the block ends.

    The bytes are on the disk before that. When the block raises, `path` stays as it was and the half-written file is
    removed. shared: allow several processes or threads to write this file at the same time, of which the last counts; a
    half-written file that a killed one leaves is then not replaced by the next. Raises OSError when the disk refuses.
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
    """Write a whole file in one step, a text as UTF-8; see `replace_file`."""
    with replace_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def create_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `path` in one step when the block ends; nothing may lie at `path`.

    The bytes of its files are on the disk before that. When the block raises, nothing is left. Raises OSError when the
    disk refuses.
    """
    half = path.with_name(path.name + HALF_WRITTEN)
    shutil.rmtree(half, ignore_errors=True)
    try:
        half.mkdir()
        yield half
        _sync_all(half)
        os.replace(half, path)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    sync_folder(path.parent)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of the folder at `path` when the block ends.

    Files of the old folder that the new one lacks are copied into the new one. A reader finds all files of the old
    folder or all of the new one, even after a power cut. Only Linux can exchange two names in one step: on other
    systems there is a moment in which nothing lies at `path`; the old folder then has the suffix `REPLACED`, and the
    next call puts it back. When the block raises, the old folder stays. Raises OSError when the disk refuses.
    """
    half, old = (path.with_name(path.name + suffix) for suffix in (HALF_WRITTEN, REPLACED))
    if old.exists() and not path.exists():
        os.replace(old, path)
    for left in (half, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        half.mkdir()
        yield half
        _complete(half, path)
        _sync_all(half)
        if not _exchange(half, path):
            os.replace(path, old)
            try:
                os.replace(half, path)
            except BaseException:
                os.replace(old, path)
                raise
        sync_folder(path.parent)
    finally:
        for left in (half, old) if path.exists() else ():
            shutil.rmtree(left, ignore_errors=True)


def _complete(half: Path, folder: Path) -> None:
    """Copy the files that only the old folder has into the new one, and the permissions of the old folder."""
    for entry in folder.iterdir():
        copy = half / entry.name
        if not copy.exists() and entry.is_dir():
            shutil.copytree(entry, copy, copy_function=shutil.copyfile)
        elif not copy.exists():
            shutil.copyfile(entry, copy)
    shutil.copymode(folder, half)


def _exchange(first: Path, second: Path) -> bool:
    """Give two folders each other's name in one step; return whether the system did so (Linux, most file systems)."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    # TypeError on Windows; other systems and old C libraries lack it.
    except (OSError, AttributeError, TypeError):
        return False
    current_folder, exchange = -100, 2  # AT_FDCWD of fcntl.h and RENAME_EXCHANGE of linux/fs.h
    status: int = renameat2(current_folder, os.fsencode(first), current_folder, os.fsencode(second), exchange)
    return status == 0


def _sync_all(folder: Path) -> None:
    """Wait until everything below a folder is on the disk."""
    for written in folder.rglob("*"):
        if written.is_file():
            sync_file(written)
        elif written.is_dir():
            sync_folder(written)
    sync_folder(folder)


def sync_file(path: Path) -> None:
    """Wait until the bytes of a file are on the disk."""
    with open(path, "rb+") as file:  # Windows syncs only files that are open for writing.
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that (Windows cannot)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # Some network file systems refuse to sync a folder.
        pass
    finally:
        os.close(descriptor)
