"""Let one process at a time write an index.

The lock is the file `lock` in the folder of the index, held with filelock: by flock on Linux and macOS, which
also holds off older versions of qseek, and by LockFileEx on Windows. The process that holds it writes its number into
`lock.pid` beside it, because Windows lets nobody read a file that is locked.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from engine.errors import IndexStateError

LOCK_NAME = "lock"
PROCESS_NAME = "lock.pid"
Held = Callable[[], AbstractContextManager[None]]
"""Gives a context that holds the writer's lock, such as `WriterLock.held`."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, or raise at once; the system frees it when the process ends, however it does.

    Not even the thread that holds it can take it again; see `WriterLock`. Raises IndexStateError: it is held already,
    or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK_NAME, thread_local=False, preserve_lock_file=True)
    with ExitStack() as stack:
        try:
            if not folder.exists():  # FileLock would make it
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            stack.enter_context(lock.acquire(blocking=False))
            stack.callback((folder / PROCESS_NAME).unlink, missing_ok=True)
            _write_process(folder)
        except Timeout:
            raise IndexStateError(
                f"another qseek (process {_read_process(folder)}) is writing the index at {folder}; "
                "wait until it is done, or give another --index"
            ) from None
        except OSError as error:
            raise IndexStateError(f"the index at {folder} cannot be written: {error.strerror}") from error
        yield


class WriterLock:
    """Hold the lock of one index folder as often as the thread that holds it asks.

    on_taken: called when the lock has been taken anew, before anything is written, because others may have written
    since the tables were read.
    """

    def __init__(self, folder: Path, on_taken: Callable[[], None]) -> None:
        self._folder = folder
        self._on_taken = on_taken
        self._thread = threading.RLock()
        self._depth = 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock; may be nested. Other threads wait. Raises IndexStateError when another process has it."""
        with self._thread, nullcontext() if self._depth else lock_folder(self._folder):
            if not self._depth:
                self._on_taken()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1


def _write_process(folder: Path) -> None:
    (folder / PROCESS_NAME).write_text(str(os.getpid()))
    if (folder / LOCK_NAME).stat().st_size:  # an older qseek wrote its process into the lock file itself
        os.truncate(folder / LOCK_NAME, 0)


def _read_process(folder: Path) -> str:
    """Return the number of the process that holds the lock, or "unknown"."""
    for name in (LOCK_NAME, PROCESS_NAME):
        try:
            process = (folder / name).read_text().strip()
        except (
            OSError
        ):  # on Windows the lock file cannot be read, and the other one comes a moment after the lock
            continue
        if process:
            return process
    return "unknown"
