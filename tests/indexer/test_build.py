"""Building an index: what is read, what is counted, and what a kill, a bad file or an absent drive costs.

The encoder gives each photo its mean colour, so that vectors can be worked out by head.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engine.progress
import indexer.build
from engine.errors import IndexStateError, QueryError
from engine.index.manifest import Manifest
from engine.index.store import Store
from indexer.build import BuildReport, Progress, build_index, estimate

MANIFEST = Manifest("fake", "00ff", 8, "squash-bicubic-8", 2, 8, (3, 4), "none")
KINDS = ("added", "copied", "moved", "restored", "changed", "unchanged", "removed")


class MeanColour:
    """vectors[0] = (red, green, blue, 0, ...), vectors[1] the same shifted by one place, each / 256."""

    image_size = 8

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, list[bytes] | None]:
        assert pixels_BHWC.dtype == np.uint8
        assert pixels_BHWC.shape[1:] == (8, 8, 3)
        self.batches.append(len(pixels_BHWC))
        vectors = np.zeros((len(pixels_BHWC), 2, 8), np.float16)
        vectors[:, 0, :3] = vectors[:, 1, 1:4] = pixels_BHWC.mean(axis=(1, 2)) / 256
        return vectors, None


def colour(number: int) -> tuple[int, int, int]:
    return number % 256, number // 256, 64


def paint(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour(number)).save(path, format="PNG")
    return path


def photos(folder: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        paint(folder / f"{number:04}.png", number)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "index", MANIFEST)


def build(
    store: Store, *roots: Path, encoder: MeanColour | None = None, **options: object
) -> tuple[BuildReport, int]:
    """-> the report, and how many photos were encoded."""
    encoder = encoder or MeanColour()
    report = build_index(roots, store, encoder, **{"workers": 0, **options})  # type: ignore[arg-type]
    return report, sum(encoder.batches)


def counts(report: BuildReport) -> dict[str, int]:
    """What is not zero."""
    tally = {kind: getattr(report, kind) for kind in KINDS} | {"failed": len(report.failed)}
    return {kind: count for kind, count in tally.items() if count}


def stored_colours(store: Store) -> dict[Path, tuple[int, ...]]:
    """Every path that can be found, with the colour that its vectors say."""
    ids = store.live_ids()
    vectors = store.vectors(ids).astype(np.float32) * 256
    return {
        path: tuple(vector[0, :3].astype(int))
        for photo, vector in zip(store.photos(ids), vectors, strict=True)
        for path in photo.paths
    }


def test_each_photo_gets_its_own_vectors_size_and_path(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(10))
    report, encoded = build(store, root)
    assert counts(report) == {"added": 10}
    assert (encoded, report.num_photos, store.num_photos, store.num_files) == (10, 10, 10, 10)
    assert stored_colours(store) == {root / f"{number:04}.png": colour(number) for number in range(10)}
    photo = store.photo_at(root / "0003.png")
    assert photo is not None
    assert (photo.width, photo.height) == (12, 10)
    assert report.disk_bytes == store.disk_bytes() > 0
    assert report.notes == ()


def test_worker_processes_give_the_same_as_none(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(70))
    (root / "0020b.png").write_bytes(b"")
    encoder = MeanColour()
    report, encoded = build(store, root, encoder=encoder, workers=2, batch_size=16)
    assert counts(report) == {"added": 70, "failed": 1}
    assert encoded == 70
    assert max(encoder.batches) == 16
    assert stored_colours(store) == {root / f"{number:04}.png": colour(number) for number in range(70)}
    other = Store.create(tmp_path / "other", MANIFEST)
    build(other, root)
    assert np.array_equal(
        store.vectors(store.live_ids()), other.vectors(other.live_ids())
    )  # ids in scan order


def test_a_second_run_does_nothing(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "photos", range(5))
    build(store, root)
    version = store.version
    monkeypatch.setattr(indexer.build, "decode_all", lambda *_: pytest.fail("something was read"))
    monkeypatch.setattr(store, "add_while_writing", lambda *_: pytest.fail("something was written"))
    report, encoded = build(store, root)
    assert counts(report) == {"unchanged": 5}
    assert (encoded, store.version) == (0, version)


def test_one_changed_one_new(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(5))
    build(store, root)
    paint(root / "0002.png", 200)
    os.utime(root / "0002.png", ns=(1, 1))
    paint(root / "new.png", 77)
    report, encoded = build(store, root)
    assert counts(report) == {"added": 1, "changed": 1, "unchanged": 4}
    assert encoded == 2
    assert report.num_photos == 6  # the old content of 0002.png can no longer be found
    assert stored_colours(store)[root / "0002.png"] == colour(200)
    assert colour(2) not in stored_colours(store).values()


def test_touched_but_not_changed_is_read_once_and_not_encoded(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(3))
    build(store, root)
    os.utime(root / "0001.png", ns=(1, 1))
    seen: list[Progress] = []
    for _ in range(2):
        report, encoded = build(store, root, on_progress=seen.append)
        assert (counts(report), encoded) == ({"unchanged": 3}, 0)
        assert {progress.total for progress in seen} == {1}
    assert store.files()[root / "0001.png"].mtime_ns == 1


def test_a_renamed_photo_keeps_its_vectors(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(5))
    build(store, root)
    before = store.photo_ids()
    (root / "0001.png").rename(root / "renamed.png")
    (root / "sub").mkdir()
    (root / "0002.png").rename(root / "sub" / "0002.png")
    report, encoded = build(store, root)
    assert counts(report) == {"moved": 2, "unchanged": 3}
    assert encoded == 0
    assert store.photo_ids() == before
    assert stored_colours(store)[root / "renamed.png"] == colour(1)
    assert root / "0001.png" not in stored_colours(store)
    report, _ = build(store, root)
    assert counts(report) == {"unchanged": 5}


def test_a_rename_back_is_a_move(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(3))
    build(store, root)
    (root / "0001.png").rename(root / "renamed.png")
    build(store, root)
    (root / "renamed.png").rename(root / "0001.png")
    assert counts(build(store, root)[0]) == {"moved": 1, "unchanged": 2}
    assert counts(build(store, root)[0]) == {"unchanged": 3}


def test_a_renamed_folder_is_hashed_and_not_decoded(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "photos" / "old", range(5)).parent
    build(store, root)
    (root / "old").rename(root / "new")
    monkeypatch.setattr("indexer.decode.squash", lambda *_: pytest.fail("decoded"))
    report, encoded = build(store, root)
    assert (counts(report), encoded) == ({"moved": 5}, 0)


def test_a_move_between_two_folders(tmp_path: Path, store: Store) -> None:
    first, second = photos(tmp_path / "a", range(3)), photos(tmp_path / "b", range(3, 6))
    build(store, first, second)
    (first / "0001.png").rename(second / "0001.png")
    report, encoded = build(store, first, second)
    assert (counts(report), encoded) == ({"moved": 1, "unchanged": 5}, 0)


def test_copies_share_one_photo(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(3))
    shutil.copy(root / "0000.png", root / "copy.png")  # twice from the start
    report, encoded = build(store, root)
    assert counts(report) == {"added": 3, "copied": 1}
    assert (encoded, report.num_photos) == (3, 3)
    shutil.copy(root / "0001.png", root / "later.png")
    report, encoded = build(store, root)
    assert (counts(report), encoded) == ({"copied": 1, "unchanged": 4}, 0)
    photo = store.photo_at(root / "later.png")
    assert photo is not None
    assert photo.paths == (root / "0001.png", root / "later.png")
    (root / "0001.png").unlink()  # one of two goes: the photo stays
    report, _ = build(store, root)
    assert counts(report) == {"removed": 1, "unchanged": 4}
    assert report.num_photos == 3


def test_many_photos_of_one_size_are_still_told_apart(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer.build, "MAX_CANDIDATES", 2)  # no digests go to the workers then
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(4):
        Image.new("RGB", (12, 10), colour(number)).save(root / f"{number}.bmp")
    build(store, root)
    for number in range(4):
        (root / f"{number}.bmp").rename(root / f"{number}-renamed.bmp")
    report, encoded = build(store, root)
    assert (counts(report), encoded) == ({"moved": 4}, 0)


def test_one_gone_path_is_moved_once(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(2))
    build(store, root)
    shutil.copy(root / "0000.png", root / "a.png")
    (root / "0000.png").rename(root / "b.png")
    assert counts(build(store, root)[0]) == {"moved": 1, "copied": 1, "unchanged": 1}


def test_deleted_photos_are_missing_and_come_back(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(4))
    build(store, root)
    for number in (0, 1):
        os.rename(root / f"{number:04}.png", tmp_path / f"{number}.png")
    report, _ = build(store, root)
    assert counts(report) == {"removed": 2, "unchanged": 2}
    assert set(stored_colours(store).values()) == {colour(2), colour(3)}
    assert counts(build(store, root)[0]) == {"unchanged": 2}
    os.rename(tmp_path / "0.png", root / "0000.png")  # same time: not even read
    os.rename(tmp_path / "1.png", root / "another.png")
    report, encoded = build(store, root)
    assert (counts(report), encoded) == ({"restored": 2, "unchanged": 2}, 0)
    assert stored_colours(store)[root / "another.png"] == colour(1)
    assert report.num_photos == 4


@pytest.mark.parametrize("leave_the_folder", [True, False], ids=["empty", "absent"])
def test_an_unmounted_drive_loses_nothing(tmp_path: Path, store: Store, leave_the_folder: bool) -> None:
    drive, other = photos(tmp_path / "drive", range(4)), photos(tmp_path / "other", range(4, 6))
    build(store, drive, other)
    drive.rename(tmp_path / "unplugged")
    if leave_the_folder:
        drive.mkdir()
    report, _ = build(store, drive, other)
    assert counts(report) == {"unchanged": 2}
    assert report.num_photos == 6
    assert len(report.notes) == 1
    assert f"{os.fspath(drive)!r}" in report.notes[0]
    assert "4 files stay known (is its drive mounted?)" in report.notes[0]
    shutil.rmtree(drive, ignore_errors=True)
    (tmp_path / "unplugged").rename(drive)
    report, encoded = build(store, drive, other)
    assert (counts(report), encoded, report.notes) == ({"unchanged": 6}, 0, ())


def test_an_unreadable_subfolder_loses_nothing(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "photos", range(2))
    photos(root / "closed", range(2, 5))
    (root / "closed" / "bad.png").write_bytes(b"")
    build(store, root)
    (root / "0000.png").unlink()
    real = os.scandir

    def scandir(path: os.PathLike[str] | str) -> object:
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        report, _ = build(store, root)
    assert counts(report) == {"removed": 1, "unchanged": 1, "failed": 1}
    assert report.failed[0].path == root / "closed"
    assert report.num_photos == 4
    report, encoded = build(store, root)
    assert (counts(report), encoded) == ({"unchanged": 4, "failed": 1}, 0)


def test_a_root_that_was_never_there_is_an_error_and_an_empty_one_is_a_note(
    tmp_path: Path, store: Store
) -> None:
    with pytest.raises(QueryError, match="there is no folder"):
        build(store, photos(tmp_path / "photos", range(2)), tmp_path / "nowhere")
    assert store.num_files == 0
    (tmp_path / "empty").mkdir()
    report, _ = build(store, tmp_path / "empty")
    assert counts(report) == {}
    assert report.notes == (f"there are no photos in {os.fspath(tmp_path / 'empty')!r}",)


def test_nested_and_repeated_roots_count_each_file_once(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(3))
    photos(root / "sub", range(3, 5))
    assert counts(build(store, root / "sub")[0]) == {"added": 2}
    assert counts(build(store, root / "sub", root, root)[0]) == {"added": 3, "unchanged": 2}
    (root / "sub" / "0003.png").unlink()
    assert counts(build(store, root / "sub")[0]) == {"removed": 1, "unchanged": 1}  # seen from within
    assert counts(build(store, root)[0]) == {"unchanged": 4}


def test_bad_files_are_listed_remembered_and_retried_on_request(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(2))
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.jpg").write_text("no photo")
    report, _ = build(store, root)
    assert counts(report) == {"added": 2, "failed": 2}
    expected = {
        root / "empty.jpg": "the file is empty (0 bytes)",
        root / "text.jpg": "it is a text file, not a picture",
    }
    assert {failure.path: failure.reason for failure in report.failed} == expected
    seen: list[Progress] = []
    report, _ = build(store, root, on_progress=seen.append)
    assert counts(report) == {"unchanged": 2, "failed": 2}
    assert {failure.path: failure.reason for failure in report.failed} == expected
    assert seen == []  # nothing was read
    report, _ = build(store, root, on_progress=seen.append, retry_failed=True)
    assert counts(report) == {"unchanged": 2, "failed": 2}
    assert (seen[-1].done, seen[-1].failed) == (2, 2)


def test_a_bad_file_that_was_mended_and_one_that_was_deleted(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(2))
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(b"")
    build(store, root)
    paint(root / "a.png", 9)
    (root / "b.png").unlink()
    assert counts(build(store, root)[0]) == {"added": 1, "unchanged": 2}
    assert store.failures() == {}


def test_a_good_photo_that_goes_bad_is_no_longer_found(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(2))
    build(store, root)
    whole = (root / "0001.png").read_bytes()
    (root / "0001.png").write_bytes(whole[:40])
    report, _ = build(store, root)
    assert counts(report) == {"failed": 1, "unchanged": 1}
    assert stored_colours(store) == {root / "0000.png": colour(0)}
    (root / "0001.png").write_bytes(whole)
    report, encoded = build(store, root)
    assert (counts(report), encoded, report.num_photos) == ({"added": 1, "unchanged": 1}, 0, 2)


def test_a_missing_extra_is_tried_again_by_itself(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "photos", range(1))
    paint(root / "phone.heic", 5)
    reason = "HEIC pictures need an extra: pip install 'qseek[heic]'"
    (root / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        report, _ = build(store, root)
        assert [failure.reason for failure in report.failed] == [reason]
    record = store.files().get(root / "phone.heic")
    assert record is None
    monkeypatch.setattr(
        "engine.pictures.pillow_files._register_heic", lambda: None
    )  # as though it had been installed
    report, _ = build(store, root)
    assert len(report.failed) == 1
    assert report.failed[0].reason != reason


def test_strange_names_reach_the_index_and_back(tmp_path: Path, store: Store) -> None:
    strange = [b"new\nline.png", b'it\'s "quoted".png', b"latin\xe9\xff.png"]
    root = tmp_path / "photos"
    for number, name in enumerate(strange):
        paint(root / os.fsdecode(name), number)
    build(store, root)
    assert {os.fsencode(path.name): value for path, value in stored_colours(store).items()} == {
        name: colour(number) for number, name in enumerate(strange)
    }
    assert counts(build(store, root, workers=2)[0]) == {"unchanged": 3}


def test_progress_goes_up_to_the_total(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.progress, "TELL_SECONDS", 0)
    root = photos(tmp_path / "photos", range(10))
    (root / "bad.png").write_bytes(b"")
    shutil.copy(root / "0000.png", root / "copy.png")
    seen: list[Progress] = []
    build(store, root, on_progress=seen.append, batch_size=4)
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert {progress.total for progress in seen} == {12}
    assert (seen[0].done, seen[0].per_second, seen[0].seconds_left) == (0, 0.0, None)
    last = seen[-1]
    assert (last.done, last.failed, last.seconds_left) == (12, 1, 0.0)
    assert last.per_second > 0
    assert any(0 < progress.done < 12 for progress in seen)


class Interrupted(MeanColour):
    """Encodes so many batches, then what the test wants happens."""

    def __init__(self, good: int, then: Callable[[], None]):
        super().__init__()
        self.good = good
        self.then = then

    def encode(self, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, list[bytes] | None]:
        if len(self.batches) == self.good:
            self.then()
        return super().encode(pixels_BHWC)


def interrupt() -> None:
    raise KeyboardInterrupt


def out_of_memory() -> None:
    raise RuntimeError("CUDA out of memory")


@pytest.mark.parametrize(("then", "error"), [(interrupt, KeyboardInterrupt), (out_of_memory, RuntimeError)])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_encoded_before_an_interruption_is_kept(
    tmp_path: Path, store: Store, then: Callable[[], None], error: type[BaseException], workers: int
) -> None:
    root = photos(tmp_path / "photos", range(40))
    with pytest.raises(error):
        build(store, root, encoder=Interrupted(3, then), batch_size=8, workers=workers, commit_seconds=1000)
    assert len(stored_colours(store)) == 24
    report, encoded = build(store, root)
    assert counts(report) == {"added": 16, "unchanged": 24}
    assert encoded == 16
    assert stored_colours(store) == {root / f"{number:04}.png": colour(number) for number in range(40)}


def test_a_full_disk_keeps_what_was_committed(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "photos", range(20))
    real = store.add_while_writing
    commits: list[int] = []

    def add(*batch: object) -> list[int]:
        if len(commits) == 2:
            raise IndexStateError("the disk that holds it is full; everything committed before is safe")
        commits.append(1)
        return real(*batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(store, "add_while_writing", add)
        with pytest.raises(IndexStateError, match=r"disk .* full"):
            build(store, root, batch_size=5, commit_seconds=-1)
    assert 0 < len(stored_colours(store)) < 20
    report, _ = build(store, root)
    assert report.num_photos == 20


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
from pathlib import Path
sys.path[:0] = {path!r}
import tests.indexer.test_build as here
from engine.index.store import Store
from indexer.build import build_index

class Slow(here.MeanColour):
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
    root = photos(tmp_path / "photos", range(400))
    with start_build(tmp_path, root) as process:
        done = wait_until_done(process, 100)
        workers = children(process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    store.refresh()
    kept = len(stored_colours(store))
    assert kept > 0
    assert kept >= done - 60  # 0.3 s of 80 photos/s at most, and a commit's own time
    report, encoded = build(store, root)  # the lock is free again
    assert counts(report) == {"added": 400 - kept, "unchanged": kept}
    assert encoded <= 400 - kept
    assert stored_colours(store) == {root / f"{number:04}.png": colour(number) for number in range(400)}
    deadline = time.monotonic() + 20
    while not all(has_ended(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and all(has_ended(pid) for pid in workers)


def test_ctrl_c_ends_at_once_and_quietly(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(400))
    with start_build(tmp_path, root) as process:
        done = wait_until_done(process, 60)
        for pid in [process.pid, *children(process)]:  # a terminal sends it to all of them
            os.kill(pid, signal.SIGINT)
        errors = process.stderr.read() if process.stderr else ""
    assert process.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1  # the parent's own, none of a worker
    assert errors.rstrip().endswith("KeyboardInterrupt")
    store.refresh()
    assert done <= len(stored_colours(store)) < 400


def run_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """In every Python started from now on: it imports sitecustomize from PYTHONPATH."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path / "site"), prepend=os.pathsep)


def test_when_no_worker_can_start_no_photo_is_blamed(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "photos", range(20))
    run_at_start(
        tmp_path, monkeypatch, "import os, sys\nif 'spawn_main' in str(sys.orig_argv): os._exit(1)\n"
    )
    with pytest.raises(BrokenProcessPool):
        build(store, root, workers=2)
    assert store.failures() == {}
    assert counts(build(store, root, workers=0)[0]) == {"added": 20}


def test_a_photo_that_kills_its_worker_is_the_only_one_that_fails(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the workers, opening a file that ends in poison.png ends the process."""
    root = photos(tmp_path / "photos", range(40))
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
    report, encoded = build(store, root, workers=2)
    assert counts(report) == {"added": 40, "failed": 2}
    assert [failure.path.name for failure in report.failed] == ["0011-poison.png", "0030-poison.png"]
    assert {failure.reason.partition(" (")[0] for failure in report.failed} == {
        "the process that decoded it died"
    }
    assert encoded == 40
    assert stored_colours(store) == {root / f"{number:04}.png": colour(number) for number in range(40)}


def test_features_are_kept_photo_by_photo(tmp_path: Path) -> None:
    class WithFeatures(MeanColour):
        def encode(self, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, list[bytes] | None]:
            return super().encode(pixels_BHWC)[0], [bytes(picture[0, 0]) for picture in pixels_BHWC]

    store = Store.create(tmp_path / "index", MANIFEST)
    root = photos(tmp_path / "photos", range(6))
    build(store, root, encoder=WithFeatures(), batch_size=4)
    ids = store.live_ids()
    paths = [photo.path for photo in store.photos(ids)]
    assert dict(zip(paths, store.features(ids), strict=True)) == {
        root / f"{number:04}.png": bytes(colour(number)) for number in range(6)
    }


def test_many_features_are_committed_before_memory_fills(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Large(MeanColour):
        def encode(self, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, list[bytes] | None]:
            return super().encode(pixels_BHWC)[0], [bytes(100)] * len(pixels_BHWC)

    monkeypatch.setattr(indexer.build, "COMMIT_BYTES", 900)
    real = store.add_while_writing
    sizes: list[int] = []

    def add(*batch: list) -> list[int]:
        sizes.append(len(batch[0]))
        return real(*batch)

    monkeypatch.setattr(store, "add_while_writing", add)
    build(store, photos(tmp_path / "photos", range(25)), encoder=Large(), batch_size=5, commit_seconds=1000)
    assert sizes == [10, 10, 5]


def test_two_at_once_are_refused(tmp_path: Path, store: Store) -> None:
    root = photos(tmp_path / "photos", range(2))
    with store.writing(), pytest.raises(IndexStateError, match="another qseek"):
        build(Store.open(store.folder), root)


def test_the_estimate_counts_vectors_twice_and_features_when_kept() -> None:
    vit_g = Manifest("g", "0", 364, "squash", 32, 256, (677, 1408), "none")
    assert 2 * 16384 * 1000 < estimate(1000, vit_g) < 2 * 16384 * 1000 * 1.02
    kept = Manifest("g", "0", 364, "squash", 32, 256, (677, 1408), "store")
    assert estimate(1000, kept) - estimate(1000, vit_g) == 677 * 1408 * 2 * 1000
