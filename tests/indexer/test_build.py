"""Building an index reads only what has changed and counts it; a kill, a bad file or an absent drive costs little.

The encoder gives each photo its mean colour, so that vectors can be worked out by head.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
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

import engine.progress
import indexer.build
from engine.errors import IndexStateError
from engine.index.manifest import Manifest
from engine.index.store import Store
from indexer.build import Progress, estimate_bytes


def test_each_photo_gets_its_own_vectors_size_and_path(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(10))
    report, encoded = build_and_count(store, root)
    assert count_changes(report) == {"added": 10}
    assert (encoded, report.num_photos, store.num_photos, store.num_files) == (10, 10, 10, 10)
    assert read_stored_colours(store) == {
        root / f"{number:04}.png": colour_of_number(number) for number in range(10)
    }
    photo = store.find_photo(root / "0003.png")
    assert photo is not None
    assert (photo.width, photo.height) == (12, 10)
    assert report.disk_bytes == store.measure_disk_bytes() > 0
    assert report.notes == ()


def test_bad_files_are_listed_remembered_and_retried_on_request(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(2))
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.jpg").write_text("no photo")
    report, _ = build_and_count(store, root)
    assert count_changes(report) == {"added": 2, "failed": 2}
    expected = {
        root / "empty.jpg": "the file is empty (0 bytes)",
        root / "text.jpg": "it is a text file, not a picture",
    }
    assert {failure.path: failure.reason for failure in report.failed} == expected
    seen: list[Progress] = []
    report, _ = build_and_count(store, root, on_progress=seen.append)
    assert count_changes(report) == {"unchanged": 2, "failed": 2}
    assert {failure.path: failure.reason for failure in report.failed} == expected
    assert seen == []  # nothing was read
    report, _ = build_and_count(store, root, on_progress=seen.append, retry_failed=True)
    assert count_changes(report) == {"unchanged": 2, "failed": 2}
    assert (seen[-1].done, seen[-1].failed) == (2, 2)


def test_a_bad_file_that_was_mended_and_one_that_was_deleted(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(2))
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(b"")
    build_and_count(store, root)
    paint(root / "a.png", 9)
    (root / "b.png").unlink()
    assert count_changes(build_and_count(store, root)[0]) == {"added": 1, "unchanged": 2}
    assert store.read_failures() == {}


def test_a_good_photo_that_goes_bad_is_no_longer_found(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(2))
    build_and_count(store, root)
    whole = (root / "0001.png").read_bytes()
    (root / "0001.png").write_bytes(whole[:40])
    report, _ = build_and_count(store, root)
    assert count_changes(report) == {"failed": 1, "unchanged": 1}
    assert read_stored_colours(store) == {root / "0000.png": colour_of_number(0)}
    (root / "0001.png").write_bytes(whole)
    report, encoded = build_and_count(store, root)
    assert (count_changes(report), encoded, report.num_photos) == ({"added": 1, "unchanged": 1}, 0, 2)


def test_a_missing_extra_is_tried_again_by_itself(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(1))
    paint(root / "phone.heic", 5)
    reason = "HEIC pictures need an extra: pip install 'qseek[heic]'"
    (root / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        report, _ = build_and_count(store, root)
        assert [failure.reason for failure in report.failed] == [reason]
    record = store.read_files().get(root / "phone.heic")
    assert record is None
    monkeypatch.setattr(
        "engine.pictures.pillow_files._register_heic", lambda: None
    )  # as though it had been installed
    report, _ = build_and_count(store, root)
    assert len(report.failed) == 1
    assert report.failed[0].reason != reason


def test_strange_names_reach_the_index_and_back(tmp_path: Path, store: Store) -> None:
    strange = [b"new\nline.png", b'it\'s "quoted".png', b"latin\xe9\xff.png"]
    root = tmp_path / "photos"
    for number, name in enumerate(strange):
        paint(root / os.fsdecode(name), number)
    build_and_count(store, root)
    assert {os.fsencode(path.name): value for path, value in read_stored_colours(store).items()} == {
        name: colour_of_number(number) for number, name in enumerate(strange)
    }
    assert count_changes(build_and_count(store, root, workers=2)[0]) == {"unchanged": 3}


def test_progress_goes_up_to_the_total(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.progress, "TELL_SECONDS", 0)
    root = write_numbered_photos(tmp_path / "photos", range(10))
    (root / "bad.png").write_bytes(b"")
    shutil.copy(root / "0000.png", root / "copy.png")
    seen: list[Progress] = []
    build_and_count(store, root, on_progress=seen.append, batch_size=4)
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert {progress.total for progress in seen} == {12}
    assert (seen[0].done, seen[0].per_second, seen[0].seconds_left) == (0, 0.0, None)
    last = seen[-1]
    assert (last.done, last.failed, last.seconds_left) == (12, 1, 0.0)
    assert last.per_second > 0
    assert any(0 < progress.done < 12 for progress in seen)


class Interrupted(MeanColour):
    """An encoder that encodes so many batches and then calls a function of the test."""

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
    root = write_numbered_photos(tmp_path / "photos", range(40))
    with pytest.raises(error):
        build_and_count(
            store, root, encoder=Interrupted(3, then), batch_size=8, workers=workers, commit_seconds=1000
        )
    assert len(read_stored_colours(store)) == 24
    report, encoded = build_and_count(store, root)
    assert count_changes(report) == {"added": 16, "unchanged": 24}
    assert encoded == 16
    assert read_stored_colours(store) == {
        root / f"{number:04}.png": colour_of_number(number) for number in range(40)
    }


def test_a_full_disk_keeps_what_was_committed(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(20))
    real = store.add_while_writing
    commits: list[int] = []

    def add(*batch: object) -> list[int]:
        if len(commits) == 2:
            raise IndexStateError("The disk that holds it is full. Everything committed before is safe")
        commits.append(1)
        return real(*batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(store, "add_while_writing", add)
        with pytest.raises(IndexStateError, match=r"disk .* full"):
            build_and_count(store, root, batch_size=5, commit_seconds=-1)
    assert 0 < len(read_stored_colours(store)) < 20
    report, _ = build_and_count(store, root)
    assert report.num_photos == 20


def test_features_are_kept_photo_by_photo(tmp_path: Path) -> None:
    class WithFeatures(MeanColour):
        def encode(self, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, list[bytes] | None]:
            return super().encode(pixels_BHWC)[0], [bytes(picture[0, 0]) for picture in pixels_BHWC]

    store = Store.create(tmp_path / "index", MANIFEST)
    root = write_numbered_photos(tmp_path / "photos", range(6))
    build_and_count(store, root, encoder=WithFeatures(), batch_size=4)
    ids = store.list_live_ids()
    paths = [photo.path for photo in store.read_photos(ids)]
    assert dict(zip(paths, store.read_patches(ids), strict=True)) == {
        root / f"{number:04}.png": bytes(colour_of_number(number)) for number in range(6)
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
    build_and_count(
        store,
        write_numbered_photos(tmp_path / "photos", range(25)),
        encoder=Large(),
        batch_size=5,
        commit_seconds=1000,
    )
    assert sizes == [10, 10, 5]


def test_two_at_once_are_refused(tmp_path: Path, store: Store) -> None:
    root = write_numbered_photos(tmp_path / "photos", range(2))
    with store.writing(), pytest.raises(IndexStateError, match="Another qseek"):
        build_and_count(Store.open(store.folder), root)


def test_the_estimate_counts_vectors_twice_and_features_when_kept() -> None:
    vit_g = Manifest("g", "0", 364, "squash", 32, 256, (677, 1408), "none")
    assert 2 * 16384 * 1000 < estimate_bytes(1000, vit_g) < 2 * 16384 * 1000 * 1.02
    with_patches = Manifest("g", "0", 364, "squash", 32, 256, (677, 1408), "store")
    assert estimate_bytes(1000, with_patches) - estimate_bytes(1000, vit_g) == 677 * 1408 * 2 * 1000
