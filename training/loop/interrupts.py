"""Ctrl-C in training: the step is finished, a checkpoint is saved, then the run stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopNow(KeyboardInterrupt):
    """Ctrl-C came a second time: stop without a new checkpoint."""


class StopSignal:
    """While it is entered, SIGINT and SIGTERM set `asked` instead of interrupting a half-made step.

    torchrun sends its workers SIGTERM when it is stopped itself. Outside of the main thread nothing is caught.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise StopNow
        self.asked = True
