"""Decode photos in worker processes, a bounded number ahead of the encoder.

Workers are spawned, because Lance is not fork-safe, and import only `indexer.decode`.
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
from indexer.decode import DecodeJob, Outcome, decode_jobs

# So many jobs go to a worker at once: 600 KB of pixels at 160 pixels a side, so that the pipe costs little.
CHUNK = 8
WINDOW = 32  # So many chunks are read ahead: four batches of 64 photos.
FEW = 16  # Starting a worker takes longer than decoding so many photos.
DIED = "the process that decoded it died (out of memory, or a crash in the decoder)"


def decode_all(
    jobs: Iterable[DecodeJob], image_size: int, workers: int | None
) -> Generator[Outcome, None, None]:
    """Yield an outcome for each job, in the order of the jobs.

    workers: number of processes, None for one on each processor, 0 to decode in this process. A photo that kills its
    worker gives a PhotoError, and the others are decoded all the same. Raises BrokenProcessPool when workers cannot
    start, as in a script that calls this without `if __name__ == "__main__"`.
    """
    jobs = iter(jobs)
    first = list(islice(jobs, FEW))
    if workers == 0 or len(first) < FEW:
        for job in (*first, *jobs):
            yield from decode_jobs([job], image_size)
        return
    pools = _Pools(count_processors() if workers is None else workers, image_size)
    try:
        yield from _read_ahead(pools, _split_jobs(first, jobs))
    finally:
        pools.close()


def _split_jobs(first: list[DecodeJob], others: Iterator[DecodeJob]) -> Iterator[list[DecodeJob]]:
    """Yield the jobs in chunks, the first ones before the others."""
    for start in range(0, len(first), CHUNK):
        yield first[start : start + CHUNK]
    while chunk := list(islice(others, CHUNK)):
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
            outcomes = [pools.decode_alone(job) for job in chunk]
        yield from outcomes


class _Pools:
    """A pool of processes that decode, and a second pool of one process for photos that may have killed a worker.

    When a worker dies, all chunks that were submitted fail with it. They are decoded again one photo at a time, so that
    the next death tells which photo was the cause.
    """

    def __init__(self, workers: int, image_size: int):
        self.workers = workers
        self.image_size = image_size
        self.pool = _start_pool(workers)
        self.lone_pool: ProcessPoolExecutor | None = None

    def submit(self, chunk: list[DecodeJob]) -> Callable[[], list[Outcome]]:
        """Submit a chunk and return a function that waits for its outcomes."""
        future: Future[list[Outcome]]
        try:
            future = self.pool.submit(decode_jobs, chunk, self.image_size)
        except BrokenProcessPool:
            self.pool.shutdown(wait=False)
            self.pool = _start_pool(self.workers)
            future = self.pool.submit(decode_jobs, chunk, self.image_size)
        return future.result

    def decode_alone(self, job: DecodeJob) -> Outcome:
        """Decode one photo with no other beside it.

        Raises BrokenProcessPool when no worker can start at all, since then no photo is at fault.
        """
        if self.lone_pool is None:
            self.lone_pool = _start_pool(1)
            self.lone_pool.submit(decode_jobs, [], self.image_size).result()
        try:
            return self.lone_pool.submit(decode_jobs, [job], self.image_size).result()[0]
        except BrokenProcessPool:
            self.lone_pool.shutdown(wait=False)
            self.lone_pool = None
            return PhotoError(DIED)

    def close(self) -> None:
        """End all processes without waiting for them."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        if self.lone_pool is not None:
            self.lone_pool.shutdown(wait=False, cancel_futures=True)


def _start_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare_worker)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers.
    warnings.simplefilter("ignore")  # Warnings of damaged EXIF would break the progress bar.
    # The encoder goes first, because a full window waits for it. Windows has no nice.
    if hasattr(os, "nice"):
        os.nice(5)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent ends; it holds both ends of the pipe that it waits on, and would outlive it."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
