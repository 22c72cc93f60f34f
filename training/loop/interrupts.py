"""Ctrl-C in training: the loop finishes the step, saves a checkpoint, and stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopNow(KeyboardInterrupt):
    """The error of a second Ctrl-C: the run stops at once, without a new checkpoint."""


class StopSignal:
    """A context in which SIGINT and SIGTERM set `is_requested` and do not interrupt a half-finished step.

    torchrun sends its workers SIGTERM when it is stopped itself. Outside of the main thread no signal is caught.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.is_requested:
            raise StopNow
        self.is_requested = True
