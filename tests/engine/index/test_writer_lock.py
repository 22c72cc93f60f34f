"""One process at a time writes an index, of whatever version, and a dead one does not keep others out."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from store_rows import fill_store, make_file, make_photo, run_python

from engine.errors import IndexStateError
from engine.index.store import Store
from engine.index.writer_lock import WriterLock, lock_folder

REPOSITORY = Path(__file__).parents[3]
on_unix = pytest.mark.skipif(sys.platform == "win32", reason="older versions of qseek ran on Unix alone")
TAKE_AND_STOP = """
import sys, time
from pathlib import Path
from engine.index.writer_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("taken", flush=True)
    time.sleep(100)
"""


def assert_refused(folder: Path, process: object) -> None:
    with pytest.raises(IndexStateError) as error, lock_folder(folder):
        pass
    assert str(error.value) == (
        f"Another qseek (process {process}) is writing the index at {folder}. "
        "Wait until it is done, or give another --index."
    )


def test_one_at_a_time_and_nothing_but_the_lock_file_stays(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_folder(tmp_path):
            assert_refused(tmp_path, os.getpid())
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_an_error_inside_frees_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock_folder(tmp_path):
        raise KeyError
    with lock_folder(tmp_path):
        pass


def test_a_killed_process_frees_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKE_AND_STOP, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "taken\n"
        assert_refused(tmp_path, process.pid)
        process.kill()
    assert (tmp_path / "lock.pid").read_text() == str(process.pid), "nobody could tidy up"
    with lock_folder(tmp_path):
        assert_refused(tmp_path, os.getpid())


@on_unix
def test_an_older_qseek_keeps_us_out(tmp_path: Path) -> None:
    """Older versions lock the same file with flock, as filelock does, and write their process number into it."""
    import fcntl

    (tmp_path / "lock.pid").write_text("7")  # a writer that was killed
    with open(tmp_path / "lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write("4242")
        file.flush()
        assert_refused(tmp_path, 4242)
    with lock_folder(tmp_path):
        assert_refused(tmp_path, os.getpid())


@on_unix
def test_we_keep_an_older_qseek_out(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "lock").write_text("4242")  # what its last run wrote; it would name that process again
    with lock_folder(tmp_path), open(tmp_path / "lock", "a+") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.seek(0)
        assert file.read() == ""


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, reason in ((tmp_path / "gone", "No such file or directory"), (tmp_path / "file", "")):
        with pytest.raises(IndexStateError, match=f"cannot be written: {reason}"), lock_folder(folder):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "no folder is made"


def test_the_writer_may_take_it_again(tmp_path: Path) -> None:
    taken: list[bool] = []
    lock = WriterLock(tmp_path, lambda: taken.append(True))
    for num_taken in (1, 2):
        with lock.hold(), lock.hold():
            with pytest.raises(KeyError), lock.hold():
                raise KeyError
            assert_refused(tmp_path, os.getpid())
        assert len(taken) == num_taken
    with lock_folder(tmp_path):
        pass


def test_other_threads_wait_for_it(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path, lambda: None)
    events: list[str] = []

    def take() -> None:
        with lock.hold():
            events.append("other")

    with lock.hold():
        other = threading.Thread(target=take)
        other.start()
        other.join(0.1)
        events.append("first")
    other.join(10)
    assert events == ["first", "other"]


def test_a_second_writer_is_turned_away_at_once(store: Store) -> None:
    fill_store(store, 1)
    code = """
        import sys
        from pathlib import Path
        from engine.errors import IndexStateError
        from engine.index.store import Store
        store = Store.open(Path(sys.argv[1]))
        print(store.list_live_ids().tolist())
        try:
            store.mark_missing([Path("/photos/0.jpg")])
            print("written")
        except IndexStateError as error:
            print(error)
        """
    with store.writing():
        done = run_python(code, store.folder)
        store.add([make_photo(1)], [make_file(1)], [])  # nested: the lock is ours
    readable, refused = done.stdout.splitlines()
    assert readable == "[0]"
    assert f"Another qseek (process {os.getpid()}) is writing the index" in refused
    assert run_python(code, store.folder).stdout.splitlines() == ["[0, 1]", "written"]
