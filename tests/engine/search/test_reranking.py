"""Reranking gives the order and the scores of brute force over one pair at a time, also from stored patches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from brute_force_scores import (
    NAMES,
    TEXT,
    TEXTS,
    assert_reranked,
    assert_well_formed,
    compute_itc_score,
    list_photo_ids,
    match_logits,
    score_stored_photos,
    sort_by_score,
)
from tiny import tiny_model, write_pictures

from engine import progress
from engine.errors import QueryError
from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.models.photo_encoder import PhotoEncoder
from engine.models.retrieval_model import BEHIND, RetrievalModel
from engine.search import reranking
from engine.search.searcher import Searcher
from engine.types import Results
from indexer.build import build_index


@pytest.mark.parametrize("rerank", [1, 7, 24, 128])
def test_reranked(searcher: Searcher, model: RetrievalModel, rerank: int) -> None:
    itc = score_stored_photos(searcher, TEXT)
    by_itc = sort_by_score(itc)
    paths = {photo.id: photo.path for photo in searcher.store.read_photos(by_itc)}  # type: ignore[union-attr]
    logits = {id_: match_logits(model, paths[id_], TEXT) for id_ in by_itc}
    chosen = {id_: float(logits[id_][1]) + itc[id_] for id_ in by_itc[:rerank]}
    results = searcher.search(TEXT, top=24, rerank=rerank)
    assert list_photo_ids(results) == sort_by_score(chosen) + by_itc[rerank:]
    assert_well_formed(results.hits)
    for hit in results.hits[:rerank]:
        assert_reranked(hit, itc[hit.photo.id], logits[hit.photo.id])
    for hit in results.hits[rerank:]:
        assert (hit.itm, hit.itc) == (None, pytest.approx(itc[hit.photo.id], abs=1e-5))
        assert hit.score == pytest.approx(hit.itc - BEHIND, abs=1e-6)
    assert rerank < 7 or list_photo_ids(results) != by_itc, "ITM should change something"
    assert list_photo_ids(searcher.search(TEXT, top=3, rerank=rerank)) == list_photo_ids(results)[:3]


def test_candidates_come_in_batches(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    want = searcher.search(TEXT, top=24)
    paths = [hit.photo.path for hit in want.hits]
    ranked = searcher.rerank(TEXT, paths)
    monkeypatch.setattr(reranking, "PHOTO_BATCH", 5)
    for actual, other in ((searcher.search(TEXT, top=24), want), (searcher.rerank(TEXT, paths), ranked)):
        assert list_photo_ids(actual) == list_photo_ids(other)
        assert [hit.score for hit in actual.hits] == pytest.approx(
            [hit.score for hit in other.hits], abs=1e-4
        )


@pytest.mark.parametrize(("features", "noise"), [("store", 0.01), ("int8", 0.05)])
def test_stored_patches_give_the_same_hits(
    shelf: Path, searcher: Searcher, model: RetrievalModel, features: str, noise: float
) -> None:
    kept_searcher = Searcher(Store.open(shelf / features), model)
    for text in (TEXT, "green"):
        actual, want = kept_searcher.search(text, top=24), searcher.search(text, top=24)
        scores = {hit.photo.digest: hit.score for hit in want.hits}
        assert [hit.score for hit in actual.hits] == pytest.approx(
            [scores[h.photo.digest] for h in actual.hits], abs=noise
        )
        assert sorted(scores.values()) == pytest.approx(sorted(hit.score for hit in actual.hits), abs=noise)


@pytest.mark.parametrize("features", ["store", "none"])
def test_what_is_held_changes_nothing(
    copied: Callable[[str], tuple[Searcher, list[Path]]], model: RetrievalModel, features: str
) -> None:
    plain, paths = copied(features)
    holding = Searcher(plain.store, model, hold_bytes=2**20)

    def ask(searcher: Searcher, text: str) -> list[Results]:
        return [searcher.search(text, top=24, rerank=20), searcher.rerank(text, paths)]

    for text in (TEXT, TEXT, "green"):
        for actual, want in zip(ask(holding, text), ask(plain, text), strict=True):
            assert list_photo_ids(actual) == list_photo_ids(want)
            assert [hit.score for hit in actual.hits] == pytest.approx(
                [hit.score for hit in want.hits], abs=1e-5
            )
    before = ask(holding, "green")
    shutil.rmtree(paths[0].parents[1])
    shutil.rmtree(plain.store.folder / "tables" / "photos.lance" / "data")  # type: ignore[union-attr]
    assert [results.hits for results in ask(holding, "green")] == [results.hits for results in before]


def test_folded_keys_change_nothing(
    copied: Callable[[str], tuple[Searcher, list[Path]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher, _ = copied("store")
    want = searcher.search(TEXT, top=24)
    read = []
    real = RetrievalModel.match
    monkeypatch.setattr(RetrievalModel, "folding_pays", True)
    monkeypatch.setattr(RetrievalModel, "compute_photo_keys", None)  # not called
    monkeypatch.setattr(
        RetrievalModel, "match", lambda self, *given: read.append(given[0]) or real(self, *given)
    )
    actual = searcher.search(TEXT, top=24)
    assert read and all(isinstance(photos, torch.Tensor) for photos in read)
    assert list_photo_ids(actual) == list_photo_ids(want)
    assert [hit.score for hit in actual.hits] == pytest.approx([hit.score for hit in want.hits], abs=1e-4)


def test_slow_encoding_is_told(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(searcher, "tell", lines.append)
    searcher.search(TEXT)
    assert lines == []
    monkeypatch.setattr(reranking, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(progress, "TELL_SECONDS", 0.0)
    searcher.search(TEXT)
    assert len(lines) == 1 and lines[0].startswith("16 of 24 candidates encoded, ")


def test_stored_patches_need_no_files(
    copied: Callable[[str], tuple[Searcher, list[Path]]], shelf: Path
) -> None:
    store_folder, paths = copied("store")
    before = (
        store_folder.search(TEXT, top=24),
        store_folder.rerank(TEXT, paths),
        store_folder.match(paths[3], TEXTS),
    )
    shutil.rmtree(paths[0].parents[1])
    after = (
        store_folder.search(TEXT, top=24),
        store_folder.rerank(TEXT, paths),
        store_folder.match(paths[3], TEXTS),
    )
    assert [results.hits for results in after] == [results.hits for results in before]
    assert after[0].failures == after[1].failures == ()


def test_photos_that_cannot_be_read_come_behind(copied: Callable[[str], tuple[Searcher, list[Path]]]) -> None:
    searcher, _ = copied("none")
    before = searcher.search(TEXT, top=24)
    gone, cut = before.hits[0].photo, before.hits[4].photo
    gone.path.unlink()
    cut.path.write_bytes(cut.path.read_bytes()[:60])
    after = searcher.search(TEXT, top=24)
    assert {failure.path: failure.reason.split(" (")[0] for failure in after.failures} == {
        gone.path: "it is no longer there",
        cut.path: "the file is cut off",
    }
    other_hits = [hit for hit in before.hits if hit.photo not in (gone, cut)]
    assert [hit.photo for hit in after.hits[:22]] == [hit.photo for hit in other_hits]
    assert [h.score for h in after.hits[:22]] == pytest.approx([h.score for h in other_hits], abs=1e-4)
    itc = score_stored_photos(searcher, TEXT)
    assert [hit.photo.id for hit in after.hits[22:]] == sort_by_score({p.id: itc[p.id] for p in (gone, cut)})
    for hit in after.hits[22:]:
        assert hit.itm is None and hit.score == pytest.approx(itc[hit.photo.id] - BEHIND, abs=1e-5)
    assert_well_formed(after.hits)
    # Behind the candidates, in front of what was no candidate: both in ITC's order.
    partly_reranked = searcher.search(TEXT, top=24, rerank=10)
    assert_well_formed(partly_reranked.hits)
    unread = [hit.photo.id for hit in partly_reranked.hits if hit.itm is None]
    assert unread == sort_by_score({id_: itc[id_] for id_ in unread}) and len(unread) >= 14


def test_when_no_file_can_be_read_itc_is_the_order(
    copied: Callable[[str], tuple[Searcher, list[Path]]],
) -> None:
    """When the drive is away, the hits still name the photos that lie there."""
    searcher, paths = copied("none")
    shutil.rmtree(paths[0].parents[1])
    results = searcher.search(TEXT, top=24)
    assert (
        list_photo_ids(results)
        == list_photo_ids(searcher.search(TEXT, top=24, rerank=0))
        == sort_by_score(score_stored_photos(searcher, TEXT))
    )
    assert len(results.failures) == 24 and all(hit.itm is None for hit in results.hits)
    assert_well_formed(results.hits)


def test_a_copy_stands_in_for_a_file_that_is_gone(tmp_path: Path, model: RetrievalModel) -> None:
    paths = write_pictures(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    shutil.copy(paths[1], tmp_path / "photos" / "z.png")
    store = Store.create(tmp_path / "index", Manifest.for_model(model, "none"))
    build_index([tmp_path / "photos"], store, PhotoEncoder(model, "none"), workers=0)
    searcher = Searcher(store, model, hold_bytes=0)
    before = searcher.search(TEXT)
    paths[1].unlink()
    after = searcher.search(TEXT)
    assert after.hits == before.hits and len(after.hits) == 3 and after.failures == ()


def test_bfloat16_is_near(shelf: Path, searcher: Searcher, tmp_path: Path) -> None:
    half = Searcher(Store.open(shelf / "none"), tiny_model(tmp_path / "tiny", dtype="bfloat16"))
    for rerank in (0, 128):
        want = {hit.photo.id: hit for hit in searcher.search(TEXT, top=24, rerank=rerank).hits}
        actual = {hit.photo.id: hit for hit in half.search(TEXT, top=24, rerank=rerank).hits}
        assert actual.keys() == want.keys()
        first, second = (np.array([hits[i].score for i in want]) for hits in (want, actual))
        assert np.corrcoef(first, second)[0, 1] > 0.99
        assert np.abs(first - second).max() < 0.25


# Any photos by ITM


def test_rerank_takes_any_photo(
    searcher: Searcher, model: RetrievalModel, shelf: Path, tmp_path: Path
) -> None:
    new = write_pictures(tmp_path, ["one.png", "two.png"], seed=5)
    known = [shelf / "photos" / name for name in NAMES[3:8]]
    broken, gone = tmp_path / "broken.jpg", tmp_path / "gone.jpg"
    broken.write_bytes(b"not a picture")
    paths = [known[0], new[0], gone, *known[1:], broken, new[1], known[2], new[0]]
    want = {
        n: float(match_logits(model, p, TEXT)[1]) + compute_itc_score(model, p, TEXT)
        for n, p in enumerate(known + new)
    }
    results = searcher.rerank(TEXT, paths)
    assert [hit.photo.path for hit in results.hits] == [(known + new)[n] for n in sort_by_score(want)]
    assert_well_formed(results.hits)
    for hit, number in zip(results.hits, sort_by_score(want), strict=True):
        assert_reranked(
            hit, compute_itc_score(model, hit.photo.path, TEXT), match_logits(model, hit.photo.path, TEXT)
        )
        assert hit.score == pytest.approx(want[number], abs=1e-4)
        assert (hit.photo.id == -1) == (hit.photo.path in new)
    assert [(failure.path, failure.reason) for failure in results.failures] == [
        (gone, "it is no longer there"),
        (broken, "it is a text file, not a picture"),
    ]
    assert searcher.rerank(TEXT, paths, top=2).hits == results.hits[:2]


def test_rerank_with_stored_patches(
    shelf: Path, searcher: Searcher, model: RetrievalModel, tmp_path: Path
) -> None:
    """Stored, readable and unreadable photos may come in one call, and each gets its own score."""
    kept_searcher = Searcher(Store.open(shelf / "store"), model)
    new = write_pictures(tmp_path, ["one.png", "two.png"], seed=5)
    known = [shelf / "photos" / name for name in NAMES[:5]]
    paths = [new[0], known[0], tmp_path / "gone.png", known[1], new[1], *known[2:]]
    actual, want = kept_searcher.rerank(TEXT, paths), searcher.rerank(TEXT, paths)
    scores = {hit.photo.path: hit.score for hit in want.hits}
    assert len(scores) == 7 and actual.failures == want.failures
    assert {hit.photo.path: hit.score for hit in actual.hits} == pytest.approx(scores, abs=0.02)
    assert_well_formed(actual.hits)


def test_each_path_of_a_photo_is_its_own_answer(tmp_path: Path, model: RetrievalModel) -> None:
    (path,) = write_pictures(tmp_path / "photos", ["a.png"])
    copy = Path(shutil.copy(path, tmp_path / "photos" / "b.png"))
    store = Store.create(tmp_path / "index", Manifest.for_model(model, "none"))
    build_index([tmp_path / "photos"], store, PhotoEncoder(model, "none"), workers=0)
    results = Searcher(store, model).rerank(TEXT, [copy, path])
    assert [hit.photo.path for hit in results.hits] == [copy, path]
    assert (
        results.hits[0].photo.paths == (copy, path) and results.hits[0].photo.id == results.hits[1].photo.id
    )


def test_nothing_to_rerank(searcher: Searcher, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="no photo to rerank"):
        searcher.rerank(TEXT, [])
    results = searcher.rerank(TEXT, [tmp_path / "gone.jpg"])
    assert results.hits == () and len(results.failures) == 1


def test_a_model_that_cannot_rerank_yet_keeps_itcs_order(
    searcher: Searcher, model: RetrievalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = searcher.search("a red dog", rerank=0)
    paths = [hit.photo.path for hit in plain.hits]
    monkeypatch.setattr(model.net, "config", replace(model.config, match_ready=False))
    results = searcher.search("a red dog")
    assert results.hits == plain.hits and all(hit.itm is None for hit in results.hits)
    assert any("is not trained well enough to rerank" in note for note in results.notes)
    again = searcher.rerank("a red dog", paths[::-1])
    assert [hit.photo.path for hit in again.hits] == paths and all(hit.itm is None for hit in again.hits)
    results = searcher.match(paths[0], ["a red dog", "a blue house"])
    assert all(hit.itm is None for hit in results.hits) and results.notes
    assert not searcher.search("a red dog", rerank=0).notes  # asked for the cosine: nothing to say


def test_a_checkpoint_may_weigh_its_logits(
    searcher: Searcher, model: RetrievalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Search, rerank and match all weigh a logit as the config says; the probability stays that of the head."""
    before = {hit.photo.id: hit for hit in searcher.search("a red dog", top=100).hits}
    path = next(iter(before.values())).photo.path
    text = searcher.match(path, ["a red dog"]).hits[0]
    monkeypatch.setattr(model.net, "config", replace(model.config, match_weight=0.25))
    after = searcher.search("a red dog", top=100).hits
    assert {hit.photo.id for hit in after} == before.keys()
    for hit in (*after, *searcher.rerank("a red dog", [hit.photo.path for hit in after]).hits):
        old = before[hit.photo.id]
        assert hit.itm == pytest.approx(old.itm, abs=1e-4)
        assert hit.score == pytest.approx(0.25 * (old.score - old.itc) + old.itc, abs=1e-3)
    assert searcher.match(path, ["a red dog"]).hits[0].score == pytest.approx(
        0.25 * (text.score - text.itc) + text.itc, abs=1e-3
    )


def test_a_calibrated_checkpoint_has_probabilities_in_the_order_of_its_scores(
    searcher: Searcher, model: RetrievalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Search, rerank and match all give the logistic function of the score, with the config's slope and offset."""
    plain = searcher.search("a red dog", top=100).hits
    by_logits = [hit.itm for hit in plain]
    monkeypatch.setattr(model.net, "config", replace(model.config, match_calibration=(0.7, -0.4)))
    hits = searcher.search("a red dog", top=100).hits
    paths = [hit.photo.path for hit in hits]
    assert [hit.photo.id for hit in hits] == [hit.photo.id for hit in plain]
    reranked = searcher.rerank("a red dog", paths).hits
    for hit in (*hits, *reranked, *searcher.match(paths[0], ["a red dog", "a blue house"]).hits):
        assert hit.itm == pytest.approx(1 / (1 + np.exp(0.4 - 0.7 * hit.score)), abs=1e-4)
    assert [hit.itm for hit in hits] == sorted((hit.itm for hit in hits), reverse=True) != by_logits
