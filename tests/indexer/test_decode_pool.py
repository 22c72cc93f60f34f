"""Worker processes give what one process gives, and a kill or Ctrl-C costs no more than it must."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from mean_colour import (
    MANIFEST,
    MeanColour,
    build_and_count,
    colour_of_number,
    count_changes,
    paint,
    read_stored_colours,
    write_numbered_photos,
)

from engine.index.store import Store


def test_worker_processes_give_the_same_as_none(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(70))
    (root / "0020b.png").write_bytes(b"")
    encoder = MeanColour()
    report, encoded = build_and_count(store, root, encoder=encoder, workers=2, batch_size=16)
    assert count_changes(report) == {"added": 70, "failed": 1}
    assert encoded == 70
    assert max(encoder.batches) == 16
    assert read_stored_colours(store) == {
        root / f"{number:04}.png": colour_of_number(number) for number in range(70)
    }
    other = Store.create(tmp_path / "other", MANIFEST)
    build_and_count(other, root)
    assert np.array_equal(
        store.read_vectors(store.list_live_ids()), other.read_vectors(other.list_live_ids())
    )  # ids in scan order


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
from pathlib import Path
sys.path[:0] = {path!r}
from mean_colour import MeanColour
from engine.index.store import Store
from indexer.build import build_index

class Slow(MeanColour):
    def encode(self, pixels):
        time.sleep(0.05)
        return super().encode(pixels)

if __name__ == "__main__":
    store = Store.open(Path({index!r}))
    build_index([Path({root!r})], store, Slow(), workers=2, batch_size=4, commit_seconds=0.3,
                on_progress=lambda progress: print(progress.done, flush=True))
"""


def start_build(tmp_path: Path, root: Path) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    path = [os.getcwd(), *sys.path]
    program.write_text(PROGRAM.format(path=path, index=os.fspath(tmp_path / "index"), root=os.fspath(root)))
    return subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until_done(process: subprocess.Popen[str], count: int) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= count:
            return int(line)
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_kill_9_loses_seconds_and_leaves_no_process_behind(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(400))
    with start_build(tmp_path, root) as process:
        done = wait_until_done(process, 100)
        workers = children(process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    store.refresh()
    num_committed = len(read_stored_colours(store))
    assert num_committed > 0
    assert num_committed >= done - 60  # 0.3 s of 80 photos/s at most, and a commit's own time
    report, encoded = build_and_count(store, root)  # the lock is free again
    assert count_changes(report) == {"added": 400 - num_committed, "unchanged": num_committed}
    assert encoded <= 400 - num_committed
    assert read_stored_colours(store) == {
        root / f"{number:04}.png": colour_of_number(number) for number in range(400)
    }
    deadline = time.monotonic() + 20
    while not all(has_ended(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and all(has_ended(pid) for pid in workers)


def test_ctrl_c_ends_at_once_and_quietly(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(400))
    with start_build(tmp_path, root) as process:
        done = wait_until_done(process, 60)
        for pid in [process.pid, *children(process)]:  # a terminal sends it to all of them
            os.kill(pid, signal.SIGINT)
        errors = process.stderr.read() if process.stderr else ""
    assert process.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1  # the parent's own, none of a worker
    assert errors.rstrip().endswith("KeyboardInterrupt")
    store.refresh()
    assert done <= len(read_stored_colours(store)) < 400


def run_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run code in every Python process that is started from now on, through sitecustomize on PYTHONPATH."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path / "site"), prepend=os.pathsep)


def test_when_no_worker_can_start_no_photo_is_blamed(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(20))
    run_at_start(
        tmp_path, monkeypatch, "import os, sys\nif 'spawn_main' in str(sys.orig_argv): os._exit(1)\n"
    )
    with pytest.raises(BrokenProcessPool):
        build_and_count(store, root, workers=2)
    assert store.read_failures() == {}
    assert count_changes(build_and_count(store, root, workers=0)[0]) == {"added": 20}


def test_a_photo_that_kills_its_worker_is_the_only_one_that_fails(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the workers end when they open a file that ends in poison.png."""
    root = write_numbered_photos(tmp_path / "photos", range(40))
    paint(root / "0011-poison.png", 50)
    paint(root / "0030-poison.png", 51)
    run_at_start(
        tmp_path,
        monkeypatch,
        "import os, sys\n"
        "def hook(event, args):\n"
        "    if event == 'open' and str(args[0]).endswith('poison.png'):\n"
        "        os._exit(9)\n"
        "sys.addaudithook(hook)\n",
    )
    report, encoded = build_and_count(store, root, workers=2)
    assert count_changes(report) == {"added": 40, "failed": 2}
    assert [failure.path.name for failure in report.failed] == ["0011-poison.png", "0030-poison.png"]
    assert {failure.reason.partition(" (")[0] for failure in report.failed} == {
        "the process that decoded it died"
    }
    assert encoded == 40
    assert read_stored_colours(store) == {
        root / f"{number:04}.png": colour_of_number(number) for number in range(40)
    }
