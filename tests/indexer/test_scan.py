"""Scanning yields each photo once, whatever lies beside it. Nothing is decoded, since no file here is a picture."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.errors import QueryError
from engine.types import Failure
from indexer.scan import scan


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(root: Path, **options: object) -> list[str]:
    return [os.fspath(file.path.relative_to(root)) for file in scan(root, **options)]  # type: ignore[arg-type]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder that another user can reach; pytest's own folders are closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        inner.chmod(0o755)
    shutil.rmtree(folder)


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Give up the right of root to read everything while the block runs."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_known_suffixes_are_named_in_any_case_with_size_and_time(tmp_path: Path) -> None:
    for name in ["a.jpg", "b.JPEG", "c.Png", "d.webp", "e.gif", "f.bmp", "g.TIF", "h.avif", "i.hif", "j.CR3"]:
        touch(tmp_path / name, b"12345")
    for name in ("notes.txt", "film.mp4", "jpg", "a.jpg.part", "a.xmp", "Thumbs.db"):
        touch(tmp_path / name)
    os.utime(tmp_path / "a.jpg", ns=(5, 1_600_000_000_123_456_789))
    files = list(scan(tmp_path))
    assert "".join(file.path.name[0] for file in files) == "abcdefghij"
    assert {file.size for file in files} == {5}
    assert files[0].mtime_ns == 1_600_000_000_123_456_789


def test_subfolders_in_a_fixed_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("z.jpg", "b/1.jpg", "b/c/2.jpg", "a/3.jpg", "B/4.jpg"):
        touch(tmp_path / name)
    assert names(tmp_path) == ["z.jpg", "B/4.jpg", "a/3.jpg", "b/1.jpg", "b/c/2.jpg"]
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in scan(Path("a"))] == [tmp_path / "a" / "3.jpg"]


def test_hidden_files_thumbnails_and_rubbish_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path / "keep" / "a.jpg")
    for folder in (".thumbnails", ".Trash-1000", "@eaDir/a.jpg", "keep/@eaDir", "$RECYCLE.BIN", "__MACOSX"):
        touch(tmp_path / folder / "a.jpg")
    for name in (".hidden.jpg", "._a.jpg", "#recycle/a.jpg", "System Volume Information/a.jpg"):
        touch(tmp_path / name)
    assert names(tmp_path) == ["keep/a.jpg"]


def test_a_root_that_is_itself_hidden_is_scanned(tmp_path: Path) -> None:
    touch(tmp_path / ".photos" / "a.jpg")
    assert names(tmp_path / ".photos") == ["a.jpg"]


def test_a_folder_called_jpg_and_a_pipe_are_no_photos(tmp_path: Path) -> None:
    touch(tmp_path / "album.jpg" / "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert names(tmp_path) == ["album.jpg/a.jpg"]


def test_link_loops_end_and_each_folder_is_entered_once(tmp_path: Path) -> None:
    touch(tmp_path / "real" / "a.jpg")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "self").symlink_to(tmp_path / "real")
    (tmp_path / "another").symlink_to(tmp_path / "real")  # sorts before "real", yet the real path is named
    (tmp_path / "ring.jpg").symlink_to(tmp_path / "ring.jpg")
    failures: list[Failure] = []
    assert names(tmp_path, on_unreadable=failures.append) == ["real/a.jpg"]
    assert [failure.path.name for failure in failures] == ["ring.jpg"]
    assert "symbolic links" in failures[0].reason


def test_linked_folders_and_files_outside_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "a.jpg", b"1234567")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "one.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    (root / "dangling.jpg").symlink_to(tmp_path / "nothing.jpg")
    assert names(root) == ["one.jpg", "linked/a.jpg"]
    assert {file.size for file in scan(root)} == {7}
    assert names(root, follow_links=False) == ["one.jpg"]


def test_strange_names_survive(tmp_path: Path) -> None:
    strange = [
        b"new\nline.jpg",
        b"'one' \"two\".jpg",
        b"latin\xe9\xff.jpg",
        "日本 🐕.jpg".encode(),
        b"a;$(b)*.jpg",
    ]
    for name in strange:
        touch(tmp_path / os.fsdecode(name))
    assert {os.fsencode(file.path.name) for file in scan(tmp_path)} == set(strange)


def test_a_root_that_is_missing_or_a_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"There is no folder .*nowhere'"):
        scan(tmp_path / "nowhere")
    with pytest.raises(QueryError, match=r"a.jpg' is a file, not a folder"):
        scan(touch(tmp_path / "a.jpg"))
    with pytest.raises(QueryError, match="There is no folder"):
        scan(tmp_path / "a.jpg" / "below")
    with pytest.raises(QueryError, match=r"\\n.*\\udcff"):  # a message that any terminal can print
        scan(tmp_path / os.fsdecode(b"new\nline\xff"))


def test_an_unreadable_root_is_an_error_and_an_unreadable_subfolder_is_reported(open_folder: Path) -> None:
    touch(open_folder / "a.jpg")
    touch(open_folder / "closed" / "b.jpg")
    touch(open_folder / "open" / "c.jpg")
    (open_folder / "closed").chmod(0)
    failures: list[Failure] = []
    with as_ordinary_user():
        assert names(open_folder, on_unreadable=failures.append) == ["a.jpg", "open/c.jpg"]
        with pytest.raises(QueryError, match=r"The folder .* cannot be read: Permission denied"):
            scan(open_folder / "closed")
    assert failures == [Failure(open_folder / "closed", "the folder cannot be read: Permission denied")]


def test_a_folder_that_vanishes_while_walking_is_passed_over(tmp_path: Path) -> None:
    for name in ("1.jpg", "gone/2.jpg", "left/3.jpg"):
        touch(tmp_path / name)
    failures: list[Failure] = []
    files = scan(tmp_path, on_unreadable=failures.append)
    assert next(files).path.name == "1.jpg"
    shutil.rmtree(tmp_path / "gone")
    assert [file.path.name for file in files] == ["3.jpg"]
    assert failures == []


def test_folders_deeper_than_the_recursion_limit(tmp_path: Path) -> None:
    depth = sys.getrecursionlimit() + 10
    try:
        folder = os.open(tmp_path, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=folder)
            below = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = below
        os.close(os.open("a.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
        os.close(folder)
        assert [len(Path(name).parts) for name in names(tmp_path)] == [depth + 1]
    finally:
        subprocess.run(["rm", "-rf", os.fspath(tmp_path / "d")], check=True)
