"""Say how far a run is: how many of its items are done, how fast it goes, and how long the others take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# The rate and the time left follow the last seconds, because the photos of one folder differ from those of another.
RATE_SECONDS = 20.0
TELL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Progress:
    """A report of how far a run is.

    done: number of items out of `total` that are finished, failed ones counted. failed: number of failed items.
    per_second: items a second, 0 until it is known. seconds_left: None until the rate is known.
    """

    done: int
    total: int
    failed: int
    per_second: float
    seconds_left: float | None


class Pace:
    """A counter of finished items that tells about them a few times a second.

    total: the number of items. on_progress: called with a `Progress`; None tells nobody.
    """

    def __init__(self, total: int, on_progress: Callable[[Progress], None] | None):
        self.total = total
        self.on_progress = on_progress
        self.done = 0
        self.num_failed = 0
        self.marks = deque([(time.monotonic(), 0)])  # Pairs (time, items done) of the last RATE_SECONDS.
        if total:
            self._tell()

    def step(self, count: int = 1, num_failed: int = 0) -> None:
        """Count `count` more items, `num_failed` of which failed."""
        self.done += count
        self.num_failed += num_failed
        now = time.monotonic()
        if now - self.marks[-1][0] >= TELL_SECONDS or self.done == self.total:
            self.marks.append((now, self.done))
            while now - self.marks[1][0] > RATE_SECONDS:
                self.marks.popleft()
            self._tell()

    def measure(self) -> Progress:
        """Return how far the run is at this moment."""
        start, before = self.marks[0]
        seconds = time.monotonic() - start
        rate = (self.done - before) / seconds if seconds > 0 else 0.0
        left = (self.total - self.done) / rate if rate else None
        return Progress(self.done, self.total, self.num_failed, rate, left)

    def _tell(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self.measure())
