"""Every kind of question gives the order and the scores of brute force over the model, and names broken files.

The tiny model, a real index, real picture files. ITC truth is the stored vectors, ITM truth one pair at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from brute_force_scores import (
    NAMES,
    TEXT,
    TEXTS,
    assert_reranked,
    assert_well_formed,
    compute_itc_score,
    match_logits,
    score_stored_photos,
    sort_by_score,
)
from tiny import tiny_checkpoint, write_pictures

from engine.errors import IndexStateError, QueryError
from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.models.loading import load_model
from engine.models.photo_encoder import PhotoEncoder
from engine.models.retrieval_model import BEHIND, RetrievalModel
from engine.search.searcher import Searcher
from indexer.build import build_index
from indexer.index_run import add_texts


def test_an_empty_index(tmp_path: Path, model: RetrievalModel, shelf: Path) -> None:
    empty = Searcher(Store.create(tmp_path / "index", Manifest.for_model(model, "none")), model)
    for results in (
        empty.search(TEXT),
        empty.search(TEXT, rerank=0),
        empty.similar(shelf / "photos" / NAMES[0]),
    ):
        assert results.hits == results.failures == ()
        assert results.notes == ("The index holds no photos. Add some with `qseek index FOLDER`.",)
    with pytest.raises(QueryError, match="The index holds no texts"):
        empty.match(shelf / "photos" / NAMES[0], None)


def test_one_photo(tmp_path: Path, model: RetrievalModel) -> None:
    (path,) = write_pictures(tmp_path / "photos", ["one.png"])
    store = Store.create(tmp_path / "index", Manifest.for_model(model, "none"))
    build_index([tmp_path / "photos"], store, PhotoEncoder(model, "none"), workers=0)
    searcher = Searcher(store, model)
    results = searcher.search(TEXT)
    (hit,) = results.hits
    assert hit.photo.path == path and results.notes == ("The index holds 1 photo.",)
    assert_reranked(hit, score_stored_photos(searcher, TEXT)[hit.photo.id], match_logits(model, path, TEXT))
    alone = searcher.similar(path)
    assert alone.hits == ()
    assert alone.notes == ("The index holds no other photo. Add some with `qseek index FOLDER`.",)


def test_a_long_text_is_said_to_be_cut(searcher: Searcher) -> None:
    words = "a red dog runs in the snow on the house"  # ten tokens fit
    assert searcher.search(words, top=3).notes == ()
    for more_words, end in ((" cat", "token was"), (" cat and", "4 tokens were")):
        results = searcher.search(words + more_words, top=3)
        assert results.notes == (f"The model reads 10 tokens; the text's last {end} left out.",)
        assert results.hits == searcher.search(words, top=3).hits
    assert (
        searcher.rerank(words + " cat", [searcher.search("cat").hits[0].photo.path])
        .notes[0]
        .startswith("The model")
    )


@pytest.mark.parametrize("text", ["", "  \n", "\u200b"])
def test_an_empty_text(searcher: Searcher, shelf: Path, text: str) -> None:
    path = shelf / "photos" / NAMES[0]
    asked = [
        lambda: searcher.search(text),
        lambda: searcher.rerank(text, [path]),
        lambda: searcher.match(path, ["a dog", text]),
        lambda: add_texts(searcher.store, searcher.model, ["a dog", text]),
    ]
    for ask in asked:
        with pytest.raises(QueryError, match=r"is empty\. Write what the photo shows"):
            ask()


def test_space_around_a_text_does_not_matter(searcher: Searcher) -> None:
    assert searcher.search(f"  {TEXT}\n").hits == searcher.search(TEXT).hits


# Photo to texts


def text_truth(
    model: RetrievalModel, path: Path, texts: Sequence[str]
) -> tuple[dict[int, float], list[np.ndarray]]:
    """Return the ITC of each text by its number, and the match logits, by brute force."""
    itc = {number: compute_itc_score(model, path, text) for number, text in enumerate(texts)}
    return itc, [match_logits(model, path, text) for text in texts]


@pytest.fixture(params=["given", "indexed"])
def asked(
    request: pytest.FixtureRequest, searcher: Searcher, model: RetrievalModel, tmp_path: Path
) -> Iterator[tuple[Searcher, list[str] | None]]:
    if request.param == "given":
        yield searcher, TEXTS
    else:
        empty_searcher = Searcher(Store.create(tmp_path / "index", Manifest.for_model(model, "none")), model)
        assert add_texts(empty_searcher.store, model, TEXTS[:4]) == 4
        assert add_texts(empty_searcher.store, model, [TEXTS[0], *TEXTS[4:], TEXTS[4] + " "]) == 2
        yield empty_searcher, None


@pytest.mark.parametrize("rerank", [0, 2, 6, 128])
def test_texts_of_a_photo(
    asked: tuple[Searcher, list[str] | None], model: RetrievalModel, shelf: Path, rerank: int
) -> None:
    searcher, texts = asked
    path = shelf / "photos" / NAMES[2]
    itc, logits = text_truth(model, path, TEXTS)
    by_itc = sort_by_score(itc)
    chosen = {number: float(logits[number][1]) + itc[number] for number in by_itc[:rerank]}
    atol = 1e-5 if texts else 1e-3  # indexed vectors are float16
    for top in (4, 50):
        results = searcher.match(path, texts, top=top, rerank=rerank)
        assert [hit.text for hit in results.hits] == [
            TEXTS[n] for n in sort_by_score(chosen) + by_itc[rerank:]
        ][:top]
        assert_well_formed(results.hits)
        for hit in results.hits:
            number = TEXTS.index(hit.text)
            assert hit.itc == pytest.approx(itc[number], abs=atol)
            if number in chosen:
                assert hit.score == pytest.approx(chosen[number], abs=10 * atol)
                probability = np.exp(logits[number][1]) / np.exp(logits[number]).sum()
                assert hit.itm == pytest.approx(probability, abs=1e-4)
            else:
                assert hit.itm is None
                assert hit.score == pytest.approx(itc[number] - (BEHIND if rerank else 0), abs=atol)


def test_new_texts_are_found_by_an_open_searcher(tmp_path: Path, model: RetrievalModel, shelf: Path) -> None:
    path, store = (
        shelf / "photos" / NAMES[2],
        Store.create(tmp_path / "index", Manifest.for_model(model, "none")),
    )
    second = Searcher(Store.open(store.folder), model)
    add_texts(store, model, TEXTS[:2])
    assert {hit.text for hit in second.match(path, None).hits} == set(TEXTS[:2])
    add_texts(store, model, TEXTS)
    assert {hit.text for hit in second.match(path, None).hits} == set(TEXTS)


def test_texts_are_said_to_be_cut(searcher: Searcher, shelf: Path) -> None:
    path, long = shelf / "photos" / NAMES[0], "the red house " * 4
    assert searcher.match(path, TEXTS).notes == ()
    assert searcher.match(path, [*TEXTS, long]).notes == (
        "1 text was longer than the model reads and cut to 10 tokens.",
    )
    assert searcher.match(path, [long, "a " + long]).notes[0].startswith("2 texts were longer")


def test_the_same_text_twice_is_one(searcher: Searcher, shelf: Path) -> None:
    results = searcher.match(shelf / "photos" / NAMES[0], ["cat", "dog", " cat "])
    assert sorted(hit.text for hit in results.hits) == ["cat", "dog"]


def test_no_texts_to_choose_from(searcher: Searcher, shelf: Path) -> None:
    with pytest.raises(QueryError, match="no texts to choose from"):
        searcher.match(shelf / "photos" / NAMES[0], [])


def test_adding_no_texts(searcher: Searcher) -> None:
    assert add_texts(searcher.store, searcher.model, []) == 0


# Which index, which model


def test_without_an_index(model: RetrievalModel, shelf: Path) -> None:
    bare, path = Searcher(None, model), shelf / "photos" / NAMES[2]
    for ask in (
        lambda: bare.search(TEXT),
        lambda: bare.similar(path),
        lambda: bare.match(path, None),
    ):
        with pytest.raises(IndexStateError, match=r"There is no index\. Make one with `qseek index FOLDER`"):
            ask()
    (hit,) = bare.rerank(TEXT, [path]).hits
    assert hit.photo.id == -1
    assert_reranked(hit, compute_itc_score(model, path, TEXT), match_logits(model, path, TEXT))
    assert len(bare.match(path, TEXTS).hits) == len(TEXTS)


def test_another_models_index_is_refused(shelf: Path, tmp_path: Path) -> None:
    other = load_model(str(tiny_checkpoint(tmp_path / "other", seed=1)), device="cpu")
    with pytest.raises(IndexStateError, match=r"made with model .*tiny.*this is model .*other.*--reindex"):
        Searcher(Store.open(shelf / "none"), other)
