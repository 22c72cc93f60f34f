"""Retrieval finds the photos that brute force over stored vectors finds, by a text and by a photo."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from brute_force_scores import (
    NAMES,
    TEXT,
    TEXTS,
    assert_well_formed,
    list_photo_ids,
    read_square,
    score_stored_photos,
    sort_by_score,
)
from tiny import write_pictures

from engine.errors import QueryError
from engine.index.caption_table import NewCaption
from engine.index.store import Store
from engine.models.photo_encoder import PhotoEncoder
from engine.models.retrieval_model import RetrievalModel
from engine.search.searcher import Searcher
from indexer.build import build_index
from indexer.index_run import add_texts

# Text to photos


def test_itc_alone(searcher: Searcher) -> None:
    for text in (TEXT, "cat", "the blue house"):
        want = score_stored_photos(searcher, text)
        results = searcher.search(text, top=9, rerank=0)
        assert list_photo_ids(results) == sort_by_score(want)[:9]
        assert [hit.score for hit in results.hits] == pytest.approx(
            [want[i] for i in list_photo_ids(results)], abs=1e-5
        )
        assert all(hit.itc == hit.score and hit.itm is None for hit in results.hits)
        assert_well_formed(results.hits)
        assert results.notes == results.failures == ()
        assert results.seconds.keys() == {"encode", "retrieve"}


def test_itc_tells_photos_and_texts_apart(searcher: Searcher) -> None:
    """The scores of the photos differ; if all were equal, every order would pass the other tests."""
    tops = {searcher.search(text, top=1, rerank=0).hits[0].photo.id for text in (*TEXTS, TEXT)}
    assert len(tops) > 1
    assert np.std(list(score_stored_photos(searcher, TEXT).values())) > 0.01


def test_k_beyond_the_collection(searcher: Searcher) -> None:
    results = searcher.search(TEXT, top=5000, rerank=5000)
    assert len(results.hits) == 24 and results.notes == ("The index holds 24 photos.",)
    assert searcher.search(TEXT, top=24).notes == ()


def test_photos_of_another_process_are_found(
    copied: Callable[[str], tuple[Searcher, list[Path]]], model: RetrievalModel
) -> None:
    searcher, paths = copied("none")
    assert len(searcher.search(TEXT, top=50).hits) == 24
    (new,) = write_pictures(paths[0].parents[1], ["new.png"], seed=77)
    paths[5].unlink()
    other = Store.open(searcher.store.folder)  # type: ignore[union-attr]
    build_index([paths[0].parents[1]], other, PhotoEncoder(model, "none"), workers=0)
    assert searcher.rerank(TEXT, [new]).hits[0].photo.id >= 0
    results = searcher.search(TEXT, top=50)
    assert {hit.photo.path for hit in results.hits} == {new, *paths} - {paths[5]}


# Photo to photos


def mean_cosines(store: Store, photo_QE: np.ndarray) -> dict[int, float]:
    ids = store.list_live_ids()
    means = (
        (store.read_vectors(ids).astype(np.float64) * photo_QE.astype(np.float64)).sum(axis=2).mean(axis=1)
    )
    return dict(zip(ids.tolist(), means.tolist(), strict=True))


def test_like_an_indexed_photo(copied: Callable[[str], tuple[Searcher, list[Path]]]) -> None:
    searcher, paths = copied("none")
    store = searcher.store
    assert store is not None
    photo = store.find_photo(paths[7])
    assert photo is not None
    want = mean_cosines(store, store.read_vectors([photo.id])[0])
    del want[photo.id]
    for number, top in enumerate((5, 23, 100)):
        results = searcher.similar(paths[7], top=top)
        assert list_photo_ids(results) == sort_by_score(want)[:top]
        assert [hit.score for hit in results.hits] == pytest.approx(
            [want[i] for i in list_photo_ids(results)], abs=1e-5
        )
        assert all(hit.itm is None and hit.itc == hit.score for hit in results.hits)
        assert_well_formed(results.hits)
        assert results.notes == (("The index holds 23 other photos.",) if top == 100 else ())
        if number == 0:
            paths[7].unlink()  # its vectors are there, the file is not needed


def test_like_another_photo(searcher: Searcher, model: RetrievalModel, shelf: Path, tmp_path: Path) -> None:
    (new,) = write_pictures(tmp_path, ["new.png"], seed=99)
    store = searcher.store
    assert store is not None
    want = mean_cosines(store, model.encode_photos(model.encode_patches(read_square(new)[None]))[0])
    results = searcher.similar(new, top=24)
    assert list_photo_ids(results) == sort_by_score(want)
    assert [hit.score for hit in results.hits] == pytest.approx(
        [want[i] for i in list_photo_ids(results)], abs=1e-5
    )
    copy = Path(shutil.copy(shelf / "photos" / NAMES[4], tmp_path / "copy.png"))  # not itself, so it is found
    first = searcher.similar(copy, top=1).hits[0]
    assert first.photo.path == shelf / "photos" / NAMES[4] and first.score == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("content", [None, b"", b"a letter, not a picture"])
def test_like_what_cannot_be_read(searcher: Searcher, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    for ask in (lambda: searcher.similar(path), lambda: searcher.match(path, ["a dog"])):
        with pytest.raises(QueryError, match=r"photo\.jpg cannot be read: (it is|the file is empty)"):
            ask()


# Threads


def faiss_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("faiss")}


def test_no_thread_is_left_by_a_searcher_that_was_closed(
    shelf: Path, model: RetrievalModel, tmp_path: Path
) -> None:
    before = faiss_threads()
    store = Store.open(Path(shutil.copytree(shelf / "none", tmp_path / "index")))
    vector_E = model.encode_texts(["a dog"])[0][0].astype(np.float16)
    store.captions.put([NewCaption(0, "a dog", "painter", "d1", vector_E)])
    add_texts(store, model, TEXTS)
    searcher = Searcher(store, model)
    path = shelf / "photos" / NAMES[0]
    for _ in range(2):  # a question after closing opens the indexes again
        want = searcher.search(TEXT).hits, searcher.match(path, None).hits
        assert faiss_threads() - before
        searcher.close()
        searcher.close()
        assert not faiss_threads() - before
        assert (searcher.search(TEXT).hits, searcher.match(path, None).hits) == want
    searcher.close()
    assert not faiss_threads() - before


def test_an_index_that_is_replaced_leaves_no_thread(
    copied: Callable[[str], tuple[Searcher, list[Path]]], model: RetrievalModel
) -> None:
    before = faiss_threads()
    searcher, paths = copied("none")
    searcher.search(TEXT)
    num_threads = len(faiss_threads() - before)
    for number in range(3):
        write_pictures(paths[0].parents[1], [f"new {number}.png"], seed=77 + number)
        other = Store.open(searcher.store.folder)  # type: ignore[union-attr]
        build_index([paths[0].parents[1]], other, PhotoEncoder(model, "none"), workers=0)
        assert len(searcher.search(TEXT, top=50).hits) == 25 + number
    assert 0 < len(faiss_threads() - before) <= num_threads
    searcher.close()
