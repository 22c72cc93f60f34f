"""The writer's lock: one process at a time writes an index."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from engine.errors import IndexStateError

LOCK_NAME = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold <folder>/lock, or raise at once; the system frees it when the process ends, however it does."""
    try:
        file: IO[str] = open(folder / LOCK_NAME, "a+")  # noqa: SIM115 -- closed below
    except OSError as error:
        raise IndexStateError(f"the index at {folder} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            process = file.read().strip() or "unknown"
            raise IndexStateError(
                f"another qseek (process {process}) is writing the index at {folder}; "
                "wait until it is done, or give another --index"
            ) from None
        try:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        except OSError as error:
            raise IndexStateError(f"the index at {folder} cannot be written: {error.strerror}") from error
        yield
