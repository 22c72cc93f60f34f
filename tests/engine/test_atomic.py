"""Files and folders are there whole or not at all."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.atomic import HALF_WRITTEN, new_folder, replace_file, write_file

ROOT = Path(__file__).parents[2]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_file(path, "old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["facts.json"]


def test_until_the_block_ends_the_old_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_file(path, "old")
    with replace_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "facts.json"
    write_file(path, "old")
    with pytest.raises(type(error)), replace_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["facts.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.json"
    write_file(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["facts.json"]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "thumbnail"
    with replace_file(path, shared=True) as file:
        file.write(b"first")
        other = threading.Thread(target=lambda: _write_shared(path))
        other.start()
        other.join()
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["thumbnail"]


def _write_shared(path: Path) -> None:
    with replace_file(path, shared=True) as file:
        file.write(b"second")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "model") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"1")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "inner" / "weights").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["model"]


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError), new_folder(tmp_path / "model") as folder:
        (folder / "weights").write_bytes(b"1")
        raise ValueError
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / f"model{HALF_WRITTEN}").mkdir()
    (tmp_path / f"model{HALF_WRITTEN}" / "old").write_bytes(b"0")
    with new_folder(tmp_path / "model") as folder:
        (folder / "weights").write_bytes(b"1")
    assert os.listdir(tmp_path / "model") == ["weights"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_file(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from engine.atomic import replace_file\n"
        f"with replace_file(Path({str(path)!r})) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old"
    write_file(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["facts.json"]
