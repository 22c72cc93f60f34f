"""Check that files and folders are written as a whole or not at all, even when the writer fails or is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from engine import atomic
from engine.atomic import HALF_WRITTEN, REPLACED, create_folder, replace_file, replace_folder, write_file

ROOT = Path(__file__).parents[2]


def test_write_file_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_file(path, "old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["facts.json"]


def test_readers_see_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
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

    def fail_to_sync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.atomic.os.fsync", fail_to_sync)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["facts.json"]


def test_two_writers_of_one_shared_file_do_not_mix_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "thumbnail"
    with replace_file(path, shared=True) as file:
        file.write(b"first")
        second_writer = threading.Thread(target=lambda: _write_second(path))
        second_writer.start()
        second_writer.join()
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["thumbnail"]


def _write_second(path: Path) -> None:
    with replace_file(path, shared=True) as file:
        file.write(b"second")


def test_a_new_folder_gets_its_name_when_the_block_ends(tmp_path: Path) -> None:
    with create_folder(tmp_path / "model") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"1")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "inner" / "weights").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["model"]


def test_an_error_while_a_new_folder_is_filled_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError), create_folder(tmp_path / "model") as folder:
        (folder / "weights").write_bytes(b"1")
        raise ValueError
    assert os.listdir(tmp_path) == []


def test_the_half_written_folder_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    (tmp_path / f"model{HALF_WRITTEN}").mkdir()
    (tmp_path / f"model{HALF_WRITTEN}" / "old").write_bytes(b"0")
    with create_folder(tmp_path / "model") as folder:
        (folder / "weights").write_bytes(b"1")
    assert os.listdir(tmp_path / "model") == ["weights"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL.")
def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_file(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from engine.atomic import replace_file\n"
        f"with replace_file(Path({str(path)!r})) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert process.returncode == -signal.SIGKILL and path.read_text() == "old"
    write_file(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["facts.json"]


def make_folder(path: Path, content: str) -> None:
    """Make a folder with two files, weights and inner/words, that both hold `content`."""
    (path / "inner").mkdir(parents=True)
    (path / "weights").write_text(content)
    (path / "inner" / "words").write_text(content)


def read_folder(path: Path) -> dict[str, str]:
    """Return the text of every file below a folder, by its path in the folder."""
    return {file.relative_to(path).as_posix(): file.read_text() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_whole_and_keeps_the_files_that_the_new_one_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    make_folder(tmp_path / "model", "old")
    (tmp_path / "model" / "README.md").write_text("mine")
    (tmp_path / "model" / "README.md").chmod(0o444)
    old = read_folder(tmp_path / "model")
    with replace_folder(tmp_path / "model") as folder:
        assert list(folder.iterdir()) == []
        make_folder(folder, "new")
        assert read_folder(tmp_path / "model") == old
    assert read_folder(tmp_path / "model") == {"weights": "new", "inner/words": "new", "README.md": "mine"}
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Only Linux exchanges two names in one step."
)
def test_a_reader_never_misses_a_folder_that_is_being_replaced(tmp_path: Path) -> None:
    """Two names are exchanged in one step, so that a reader finds either the old folder or the new one.

    A file that was opened before the exchange can be read to its end.
    """
    make_folder(tmp_path / "model", "0")
    answers, stop = set(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            answers.add((tmp_path / "model" / "weights").exists())

    reader = threading.Thread(target=watch)
    reader.start()
    for number in range(1, 30):
        with replace_folder(tmp_path / "model") as folder:
            make_folder(folder, str(number))
    stop.set()
    reader.join()
    assert answers == {True}


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_an_error_while_a_folder_is_replaced_leaves_the_old_folder(
    tmp_path: Path, error: BaseException
) -> None:
    make_folder(tmp_path / "model", "old")
    with pytest.raises(type(error)), replace_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("half")
        raise error
    assert read_folder(tmp_path / "model") == {"weights": "old", "inner/words": "old"}
    assert os.listdir(tmp_path) == ["model"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "model", "old")
    original_replace = os.replace

    def refuse_half_written(source: Path, target: Path) -> None:
        if source.name.endswith(HALF_WRITTEN):
            raise OSError(13, "Permission denied")
        original_replace(source, target)

    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    monkeypatch.setattr("engine.atomic.os.replace", refuse_half_written)
    with pytest.raises(OSError, match="Permission denied"), replace_folder(tmp_path / "model") as folder:
        make_folder(folder, "new")
    assert read_folder(tmp_path / "model") == {"weights": "old", "inner/words": "old"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_that_a_kill_left_without_its_name_gets_it_back(tmp_path: Path) -> None:
    make_folder(tmp_path / f"model{REPLACED}", "old")
    make_folder(tmp_path / f"model{HALF_WRITTEN}", "half")
    with pytest.raises(ValueError), replace_folder(tmp_path / "model"):
        assert read_folder(tmp_path / "model") == {"weights": "old", "inner/words": "old"}
        raise ValueError
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("write_folder", [create_folder, replace_folder])
def test_all_bytes_are_on_the_disk_before_the_name_changes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_folder: Callable[[Path], AbstractContextManager[Path]],
) -> None:
    events: list[str] = []
    if write_folder is replace_folder:
        make_folder(tmp_path / "model", "old")
    sync_file, sync_folder = atomic.sync_file, atomic.sync_folder
    monkeypatch.setattr(atomic, "sync_file", lambda path: (events.append(path.name), sync_file(path)))
    monkeypatch.setattr(atomic, "sync_folder", lambda path: (events.append(path.name), sync_folder(path)))
    with write_folder(tmp_path / "model") as folder:
        make_folder(folder, "new")
    # The folder itself is synced after everything in it and before its new name in the folder around it.
    folder_sync = events.index(f"model{HALF_WRITTEN}")
    assert sorted(events[:folder_sync]) == ["inner", "weights", "words"]
    assert events[folder_sync + 1 :] == [tmp_path.name]
