"""Measure `qseek search` as a command: its seconds, its memory and the time of its imports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from inputs import TEXTS

if TYPE_CHECKING:
    from engine.models.retrieval_model import RetrievalModel

ROOT = Path(__file__).parents[2]


def measure_cold_starts(
    folder: Path, model: RetrievalModel, rounds: int
) -> Iterator[tuple[str, list[float], float]]:
    """Run `qseek search` in the index `folder`, with and without reranking.

    Yields (title, seconds of each round, most resident bytes) for both.
    """
    for title, options in (("reranked", []), ("--no-rerank", ["--no-rerank"])):
        seconds, peak = [], 0.0
        for number in range(rounds + 1):
            started = time.perf_counter()
            command = _search_command(folder, model, options)
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"`qseek search` failed with status {process.returncode}.")
            if number:  # The first run fills the cache of the disk.
                seconds.append(time.perf_counter() - started)
            peak = max(peak, usage.ru_maxrss * 1024)
        yield title, seconds, peak


def measure_imports(folder: Path, model: RetrievalModel) -> list[tuple[str, str]]:
    """Return (package, milliseconds) of the slowest imports of a cold start, and of all, from -X importtime."""
    command = _search_command(folder, model, ["--no-rerank"])
    command[1:1] = ["-X", "importtime"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    times: dict[str, int] = defaultdict(int)
    for line in output.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and fields[0].strip().isdigit():
            times[fields[2].strip().partition(".")[0]] += int(fields[0])
    slowest_first = sorted(times.items(), key=lambda item: -item[1])
    rows = [(name, f"{microseconds / 1000:.0f}") for name, microseconds in slowest_first[:8]]
    return [*rows, ("all imports", f"{sum(times.values()) / 1000:.0f}")]


def _search_command(folder: Path, model: RetrievalModel, options: list[str]) -> list[str]:
    start = [sys.executable, "-m", "ui.cli.main", "search", TEXTS[0], "--json"]
    return [*start, "--index", str(folder), "--model", str(model.folder), *options]
