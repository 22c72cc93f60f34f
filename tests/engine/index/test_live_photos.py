"""Photos are found unless all their files are missing or forgotten, also at many paths."""

from __future__ import annotations

import numpy as np
import pytest
from store_rows import ROOT, fill_store, make_file, make_photo

from engine.errors import IndexStateError
from engine.index.store import Store


def test_missing_is_not_forgotten_and_comes_back(store: Store) -> None:
    fill_store(store, 3)
    store.add([], [make_file(1, "copy of 1.jpg")])
    version = store.version
    store.mark_missing([ROOT / "0.jpg", ROOT / "1.jpg", ROOT / "unknown.jpg"])
    assert store.list_live_ids().tolist() == [1, 2]  # 1 still has its copy
    assert store.read_photos([1])[0].paths == (ROOT / "copy of 1.jpg",)
    assert store.num_files == 2 and len(store.read_files()) == 4
    store.add([], [make_file(0)])
    assert store.list_live_ids().tolist() == [0, 1, 2] and not store.read_files()[ROOT / "0.jpg"].missing
    assert store.version == version  # the photos did not change: FAISS files stay


def test_prune_forgets_and_never_gives_an_id_again(store: Store) -> None:
    fill_store(store, 5)
    store.mark_missing([ROOT / "1.jpg", ROOT / "3.jpg", ROOT / "4.jpg"])
    assert store.prune() == 2
    assert set(store.read_files()) == {ROOT / "0.jpg", ROOT / "2.jpg"}
    assert store.list_live_ids().tolist() == [0, 2] and store.num_photos == 2
    np.testing.assert_array_equal(store.read_vectors([2]), make_photo(2).vectors_QE[None])
    assert store.add([make_photo(7)], [make_file(7)], []) == [5]
    assert store.prune() == 1 and store.list_ids().tolist() == [0, 2, 5]
    assert store.prune() == 0
    with pytest.raises(IndexStateError, match="Photo 3 is no longer in the index"):
        store.read_photos([0, 3])


def test_photos_at_many_paths(store: Store) -> None:
    """Photos are found at copies, and not at missing or unknown paths, also when one SQL condition is too short for
    all.
    """
    store.add(
        [make_photo(0), make_photo(1)], [make_file(0, "a.jpg"), make_file(1, "b.jpg"), make_file(0, "c.jpg")]
    )
    store.mark_missing([ROOT / "b.jpg"])
    paths = [ROOT / f"none{number}.jpg" for number in range(2500)]
    paths[7], paths[1200], paths[2499], paths[3] = (
        ROOT / name for name in ("a.jpg", "c.jpg", "a.jpg", "b.jpg")
    )
    photo = store.find_photos(paths)
    assert [row for row, photo in enumerate(photo) if photo] == [7, 1200, 2499]
    assert {photo.id for photo in photo if photo} == {0} and photo[7] == store.find_photo(ROOT / "c.jpg")
    assert photo[7] is not None and photo[7].paths == (ROOT / "a.jpg", ROOT / "c.jpg")
    assert store.find_photos([]) == []
