"""Decode in worker processes, a bounded number of photos ahead of the encoder.

Workers are spawned, for Lance is not fork-safe, and import `indexer.decode` alone.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, get_context, parent_process

from engine.errors import PhotoError
from engine.processors import count_processors
from indexer.decode import DecodeJob, Outcome, attempt

CHUNK = (
    8  # jobs sent to a worker at once: 600 KB of pixels at 160 pixels a side, so that the pipe costs little
)
WINDOW = 32  # chunks read ahead: four batches of 64
FEW = 16  # photos; starting a worker takes longer than decoding so many
DIED = "the process that decoded it died (out of memory, or a crash in the decoder)"


def decode_all(
    jobs: Iterable[DecodeJob], image_size: int, workers: int | None
) -> Generator[Outcome, None, None]:
    """Yield an outcome for each job, in the order of the jobs.

    workers: processes, None for one a processor; 0 decodes in this one. A photo that kills its worker gives a
    PhotoError, the others are decoded all the same. Raises BrokenProcessPool when workers cannot start, as in a
    script that calls this without `if __name__ == "__main__"`.
    """
    jobs = iter(jobs)
    first = list(islice(jobs, FEW))
    if workers == 0 or len(first) < FEW:
        for job in (*first, *jobs):
            yield from attempt([job], image_size)
        return
    pools = _Pools(count_processors() if workers is None else workers, image_size)
    try:
        yield from _read_ahead(pools, _chunks(first, jobs))
    finally:
        pools.close()


def _chunks(first: list[DecodeJob], rest: Iterator[DecodeJob]) -> Iterator[list[DecodeJob]]:
    for start in range(0, len(first), CHUNK):
        yield first[start : start + CHUNK]
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _read_ahead(pools: _Pools, chunks: Iterator[list[DecodeJob]]) -> Iterator[Outcome]:
    window: deque[tuple[list[DecodeJob], Callable[[], list[Outcome]]]] = deque()
    while True:
        for chunk in islice(chunks, WINDOW - len(window)):
            window.append((chunk, pools.submit(chunk)))
        if not window:
            return
        chunk, result = window.popleft()
        try:
            outcomes = result()
        except BrokenProcessPool:
            outcomes = [pools.decode_apart(job) for job in chunk]
        yield from outcomes


class _Pools:
    """The pool that decodes, and a second one of a single process for photos under suspicion.

    When a worker dies, every chunk in flight fails with it. Those chunks are decoded again one photo at a
    time with nothing beside it, so that the next death names its photo.
    """

    def __init__(self, workers: int, image_size: int):
        self.workers = workers
        self.image_size = image_size
        self.pool = _start(workers)
        self.apart: ProcessPoolExecutor | None = None

    def submit(self, chunk: list[DecodeJob]) -> Callable[[], list[Outcome]]:
        future: Future[list[Outcome]]
        try:
            future = self.pool.submit(attempt, chunk, self.image_size)
        except BrokenProcessPool:
            self.pool.shutdown(wait=False)
            self.pool = _start(self.workers)
            future = self.pool.submit(attempt, chunk, self.image_size)
        return future.result

    def decode_apart(self, job: DecodeJob) -> Outcome:
        """Raises BrokenProcessPool when no worker can start at all, for then no photo is at fault."""
        if self.apart is None:
            self.apart = _start(1)
            self.apart.submit(attempt, [], self.image_size).result()
        try:
            return self.apart.submit(attempt, [job], self.image_size).result()[0]
        except BrokenProcessPool:
            self.apart.shutdown(wait=False)
            self.apart = None
            return PhotoError(DIED)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        if self.apart is not None:
            self.apart.shutdown(wait=False, cancel_futures=True)


def _start(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare_worker)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers
    warnings.simplefilter("ignore")  # damaged EXIF and the like, amid the progress bar
    if hasattr(
        os, "nice"
    ):  # a full window waits for the encoder, so the encoder goes first; Windows has no nice
        os.nice(5)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Without this a worker outlives a killed parent: it holds both ends of the pipe that it waits on."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
