"""Let one process at a time write an index.

The lock is the file `lock` in the folder of the index. filelock locks it with flock on Linux and macOS, which older
versions of qseek respect as well, and with LockFileEx on Windows. The process that holds the lock writes its number
into `lock.pid` beside it, because nobody can read a locked file on Windows.
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
"""Type of a function that returns a context which holds the writer's lock, such as `WriterLock.hold`."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, or raise at once. The system frees it when the process ends in any way.

    Nobody can take it twice, not even the thread that holds it; see `WriterLock`. Raises IndexStateError when the lock
    is held already, and when the folder cannot be written.
    """
    lock = FileLock(folder / LOCK_NAME, thread_local=False, preserve_lock_file=True)
    with ExitStack() as stack:
        try:
            if not folder.exists():  # FileLock would make the folder.
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            stack.enter_context(lock.acquire(blocking=False))
            stack.callback((folder / PROCESS_NAME).unlink, missing_ok=True)
            _write_process(folder)
        except Timeout:
            raise IndexStateError(
                f"Another qseek (process {_read_process(folder)}) is writing the index at {folder}. "
                "Wait until it is done, or give another --index."
            ) from None
        except OSError as error:
            raise IndexStateError(f"The index at {folder} cannot be written: {error.strerror}.") from error
        yield


class WriterLock:
    """The lock of an index folder, which the thread that holds it may take again.

    on_taken: called when the lock has been taken from the free state, before anything is written, because others may
    have written since the tables were read.
    """

    def __init__(self, folder: Path, on_taken: Callable[[], None]) -> None:
        self._folder = folder
        self._on_taken = on_taken
        self._thread = threading.RLock()
        self._depth = 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock while the block runs; blocks may be nested, and other threads wait.

        Raises IndexStateError when another process holds it.
        """
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
    # An older qseek wrote its process number into the lock file itself.
    if (folder / LOCK_NAME).stat().st_size:
        os.truncate(folder / LOCK_NAME, 0)


def _read_process(folder: Path) -> str:
    """Return the number of the process that holds the lock, or "unknown"."""
    for name in (LOCK_NAME, PROCESS_NAME):
        try:
            process = (folder / name).read_text().strip()
        except OSError:
            # On Windows the lock file cannot be read, and the other file comes a moment after the lock.
            continue
        if process:
            return process
    return "unknown"
