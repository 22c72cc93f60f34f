"""Write the report of a benchmark with the machine, versions, model and date, and measure peak memory.

This module imports no heavy library: each worker that indexing starts imports the benchmark's main module again, and
this module with it.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.models.retrieval_model import RetrievalModel

RESULTS = Path(__file__).parent / "results"
# Packages whose versions a report names; of the names in a tuple, those that are installed.
PACKAGES = (
    "torch",
    "timm",
    "transformers",
    "numpy",
    "pillow",
    "pyarrow",
    "lancedb",
    ("faiss-gpu", "faiss-cpu", "faiss-cuda"),
)
MIB = 2**20


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a table in Markdown; the first column is text, the others are numbers."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)


def spread(seconds: Sequence[float], unit: float = 1e-3, digits: int = 1) -> str:
    """Format times as their median, least and largest. unit: in seconds; the default prints milliseconds."""
    ordered = sorted(value / unit for value in seconds)
    middle = ordered[len(ordered) // 2]
    return f"{middle:.{digits}f} ({ordered[0]:.{digits}f}-{ordered[-1]:.{digits}f})"


def median(values: Sequence[float]) -> float:
    """Return the median; of an even number of values, the larger of the two in the middle."""
    return sorted(values)[len(values) // 2]


def write_report(name: str, parts: Sequence[str], model: RetrievalModel | None = None) -> Path:
    """Print the parts of a report below the facts of the run, and write them to results/<date>-<name>.md."""
    today = datetime.date.today().isoformat()
    text = "\n\n".join([f"# {name}, {today}", facts(model), *parts]) + "\n"
    folder = Path(os.environ.get("QSEEK_BENCH_RESULTS", RESULTS))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{today}-{name}.md"
    path.write_text(text)
    print(text)
    return path


def facts(model: RetrievalModel | None) -> str:
    """Return the facts of a run in Markdown: a line each for machine, versions, model, command and load."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lines = [
        f"machine: {_processor()}, {len(os.sched_getaffinity(0))} cores, {_memory_gib():.0f} GiB, GPU: {_gpu()}",
        f"versions: Python {platform.python_version()}, " + ", ".join(_versions()),
    ]
    if model is not None:
        import torch

        lines.append(
            f"model: {Path(model.name).name}, digest {model.digest}, {model.image_size} px, "
            f"{str(model.dtype).removeprefix('torch.')} on {model.device}, {torch.get_num_threads()} torch threads"
        )
    # A report is committed, so it must not name the folders of the machine on which it was made.
    arguments = [argument.rstrip("/").rpartition("/")[2] for argument in sys.argv]
    lines += [
        f"command: `{' '.join(arguments)}`",
        f"load average at the end (1, 5, 15 minutes): {load}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _gpu() -> str:
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return "none"
    return "; ".join(output.strip().splitlines())


def _versions() -> Iterator[str]:
    for names in PACKAGES:
        for name in (names,) if isinstance(names, str) else names:
            try:
                yield f"{name} {importlib.metadata.version(name)}"
            except importlib.metadata.PackageNotFoundError:
                continue


@dataclass
class Memory:
    """Resident bytes of this process and its children. before: at the start; peak: the largest of all samples.

    Pages that processes share (torch's libraries, mapped FAISS files) count once for each process.
    """

    before: int = 0
    peak: int = 0
    samples: int = field(default=0, repr=False)


@contextmanager
def peak_memory(interval: float = 0.1) -> Iterator[Memory]:
    """Sample the resident memory during a `with` block. interval: seconds between two samples."""
    memory = Memory(before=_resident_bytes())
    memory.peak = memory.before
    done = threading.Event()

    def sample() -> None:
        while not done.wait(interval):
            memory.peak = max(memory.peak, _resident_bytes())
            memory.samples += 1

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield memory
    finally:
        done.set()
        sampler.join()


def _resident_bytes() -> int:
    """Return the resident bytes of this process and all its descendants."""
    pages, process_ids = 0, [os.getpid()]
    while process_ids:
        process = Path("/proc") / str(process_ids.pop())
        try:
            pages += int((process / "statm").read_text().split()[1])
            for children in process.glob("task/*/children"):
                process_ids += map(int, children.read_text().split())
        except (OSError, IndexError):  # The process has ended.
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")
