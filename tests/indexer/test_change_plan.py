"""A second run of the indexer finds new, changed, moved, copied, missing and unreadable photos."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from mean_colour import (
    build_and_count,
    colour_of_number,
    count_changes,
    paint,
    read_stored_colours,
    write_numbered_photos,
)
from PIL import Image

import indexer.build
from engine.errors import QueryError
from engine.index.store import Store
from indexer.build import Progress


def test_a_second_run_does_nothing(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(5))
    build_and_count(store, root)
    version = store.version
    monkeypatch.setattr(indexer.build, "decode_all", lambda *_: pytest.fail("something was read"))
    monkeypatch.setattr(store, "add_while_writing", lambda *_: pytest.fail("something was written"))
    report, encoded = build_and_count(store, root)
    assert count_changes(report) == {"unchanged": 5}
    assert (encoded, store.version) == (0, version)


def test_one_changed_one_new(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(5))
    build_and_count(store, root)
    paint(root / "0002.png", 200)
    os.utime(root / "0002.png", ns=(1, 1))
    paint(root / "new.png", 77)
    report, encoded = build_and_count(store, root)
    assert count_changes(report) == {"added": 1, "changed": 1, "unchanged": 4}
    assert encoded == 2
    assert report.num_photos == 6  # the old content of 0002.png can no longer be found
    assert read_stored_colours(store)[root / "0002.png"] == colour_of_number(200)
    assert colour_of_number(2) not in read_stored_colours(store).values()


def test_touched_but_not_changed_is_read_once_and_not_encoded(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(3))
    build_and_count(store, root)
    os.utime(root / "0001.png", ns=(1, 1))
    seen: list[Progress] = []
    for _ in range(2):
        report, encoded = build_and_count(store, root, on_progress=seen.append)
        assert (count_changes(report), encoded) == ({"unchanged": 3}, 0)
        assert {progress.total for progress in seen} == {1}
    assert store.read_files()[root / "0001.png"].mtime_ns == 1


def test_a_renamed_photo_keeps_its_vectors(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(5))
    build_and_count(store, root)
    before = store.map_ids_by_digest()
    (root / "0001.png").rename(root / "renamed.png")
    (root / "sub").mkdir()
    (root / "0002.png").rename(root / "sub" / "0002.png")
    report, encoded = build_and_count(store, root)
    assert count_changes(report) == {"moved": 2, "unchanged": 3}
    assert encoded == 0
    assert store.map_ids_by_digest() == before
    assert read_stored_colours(store)[root / "renamed.png"] == colour_of_number(1)
    assert root / "0001.png" not in read_stored_colours(store)
    report, _ = build_and_count(store, root)
    assert count_changes(report) == {"unchanged": 5}


def test_a_rename_back_is_a_move(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(3))
    build_and_count(store, root)
    (root / "0001.png").rename(root / "renamed.png")
    build_and_count(store, root)
    (root / "renamed.png").rename(root / "0001.png")
    assert count_changes(build_and_count(store, root)[0]) == {"moved": 1, "unchanged": 2}
    assert count_changes(build_and_count(store, root)[0]) == {"unchanged": 3}


def test_a_renamed_folder_is_hashed_and_not_decoded(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_numbered_photos(tmp_path / "photos" / "old", range(5)).parent
    build_and_count(store, root)
    (root / "old").rename(root / "new")
    monkeypatch.setattr("indexer.decode.squash", lambda *_: pytest.fail("decoded"))
    report, encoded = build_and_count(store, root)
    assert (count_changes(report), encoded) == ({"moved": 5}, 0)


def test_a_move_between_two_folders(tmp_path: Path, store: Store) -> None:
    first, second = (
        write_numbered_photos(tmp_path / "a", range(3)),
        write_numbered_photos(tmp_path / "b", range(3, 6)),
    )
    build_and_count(store, first, second)
    (first / "0001.png").rename(second / "0001.png")
    report, encoded = build_and_count(store, first, second)
    assert (count_changes(report), encoded) == ({"moved": 1, "unchanged": 5}, 0)


def test_copies_share_one_photo(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(3))
    shutil.copy(root / "0000.png", root / "copy.png")  # twice from the start
    report, encoded = build_and_count(store, root)
    assert count_changes(report) == {"added": 3, "copied": 1}
    assert (encoded, report.num_photos) == (3, 3)
    shutil.copy(root / "0001.png", root / "later.png")
    report, encoded = build_and_count(store, root)
    assert (count_changes(report), encoded) == ({"copied": 1, "unchanged": 4}, 0)
    photo = store.find_photo(root / "later.png")
    assert photo is not None
    assert photo.paths == (root / "0001.png", root / "later.png")
    (root / "0001.png").unlink()  # one of two goes: the photo stays
    report, _ = build_and_count(store, root)
    assert count_changes(report) == {"removed": 1, "unchanged": 4}
    assert report.num_photos == 3


def test_many_photos_of_one_size_are_still_told_apart(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer.build, "MAX_CANDIDATES", 2)  # no digests go to the workers then
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(4):
        Image.new("RGB", (12, 10), colour_of_number(number)).save(root / f"{number}.bmp")
    build_and_count(store, root)
    for number in range(4):
        (root / f"{number}.bmp").rename(root / f"{number}-renamed.bmp")
    report, encoded = build_and_count(store, root)
    assert (count_changes(report), encoded) == ({"moved": 4}, 0)


def test_one_gone_path_is_moved_once(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(2))
    build_and_count(store, root)
    shutil.copy(root / "0000.png", root / "a.png")
    (root / "0000.png").rename(root / "b.png")
    assert count_changes(build_and_count(store, root)[0]) == {"moved": 1, "copied": 1, "unchanged": 1}


def test_deleted_photos_are_missing_and_come_back(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(4))
    build_and_count(store, root)
    for number in (0, 1):
        os.rename(root / f"{number:04}.png", tmp_path / f"{number}.png")
    report, _ = build_and_count(store, root)
    assert count_changes(report) == {"removed": 2, "unchanged": 2}
    assert set(read_stored_colours(store).values()) == {colour_of_number(2), colour_of_number(3)}
    assert count_changes(build_and_count(store, root)[0]) == {"unchanged": 2}
    os.rename(tmp_path / "0.png", root / "0000.png")  # same time: not even read
    os.rename(tmp_path / "1.png", root / "another.png")
    report, encoded = build_and_count(store, root)
    assert (count_changes(report), encoded) == ({"restored": 2, "unchanged": 2}, 0)
    assert read_stored_colours(store)[root / "another.png"] == colour_of_number(1)
    assert report.num_photos == 4


@pytest.mark.parametrize("leave_the_folder", [True, False], ids=["empty", "absent"])
def test_an_unmounted_drive_loses_nothing(tmp_path: Path, store: Store, leave_the_folder: bool) -> None:
    drive, other = (
        write_numbered_photos(tmp_path / "drive", range(4)),
        write_numbered_photos(tmp_path / "other", range(4, 6)),
    )
    build_and_count(store, drive, other)
    drive.rename(tmp_path / "unplugged")
    if leave_the_folder:
        drive.mkdir()
    report, _ = build_and_count(store, drive, other)
    assert count_changes(report) == {"unchanged": 2}
    assert report.num_photos == 6
    assert len(report.notes) == 1
    assert f"{os.fspath(drive)!r}" in report.notes[0]
    assert "4 files stay in the index; is its drive mounted?" in report.notes[0]
    shutil.rmtree(drive, ignore_errors=True)
    (tmp_path / "unplugged").rename(drive)
    report, encoded = build_and_count(store, drive, other)
    assert (count_changes(report), encoded, report.notes) == ({"unchanged": 6}, 0, ())


def test_an_unreadable_subfolder_loses_nothing(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(2))
    write_numbered_photos(root / "closed", range(2, 5))
    (root / "closed" / "bad.png").write_bytes(b"")
    build_and_count(store, root)
    (root / "0000.png").unlink()
    real = os.scandir

    def scandir(path: os.PathLike[str] | str) -> object:
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        report, _ = build_and_count(store, root)
    assert count_changes(report) == {"removed": 1, "unchanged": 1, "failed": 1}
    assert report.failed[0].path == root / "closed"
    assert report.num_photos == 4
    report, encoded = build_and_count(store, root)
    assert (count_changes(report), encoded) == ({"unchanged": 4, "failed": 1}, 0)


def test_a_root_that_was_never_there_is_an_error_and_an_empty_one_is_a_note(
    tmp_path: Path, store: Store
) -> None:
    with pytest.raises(QueryError, match="There is no folder"):
        build_and_count(store, write_numbered_photos(tmp_path / "photos", range(2)), tmp_path / "nowhere")
    assert store.num_files == 0
    (tmp_path / "empty").mkdir()
    report, _ = build_and_count(store, tmp_path / "empty")
    assert count_changes(report) == {}
    assert report.notes == (f"There are no photos in {os.fspath(tmp_path / 'empty')!r}.",)


def test_nested_and_repeated_roots_count_each_file_once(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(3))
    write_numbered_photos(root / "sub", range(3, 5))
    assert count_changes(build_and_count(store, root / "sub")[0]) == {"added": 2}
    assert count_changes(build_and_count(store, root / "sub", root, root)[0]) == {"added": 3, "unchanged": 2}
    (root / "sub" / "0003.png").unlink()
    # seen from within
    assert count_changes(build_and_count(store, root / "sub")[0]) == {"removed": 1, "unchanged": 1}
    assert count_changes(build_and_count(store, root)[0]) == {"unchanged": 4}
