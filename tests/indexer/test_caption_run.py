"""Captions of an index are written once, stay with their photo, and are searched as brute force would."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from brute_force_scores import assert_well_formed, list_photo_ids, match_logits, score_stored_photos
from fake_model import FakeCaptioner, FakeModel, colour_vector
from PIL import Image
from tiny import tiny_model, write_pictures

from engine.index.caption_table import NewCaption
from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.models.photo_encoder import PhotoEncoder
from engine.models.retrieval_model import RetrievalModel
from engine.search.caption_search import CaptionSearch
from engine.search.retrieval import CAPTIONED_SHARE
from engine.search.searcher import Searcher
from indexer.build import build_index
from indexer.caption_run import CHANGED, CaptionReport, index_captions

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
SKETCHER = ("sketcher", "d2" * 16)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 16), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def store(tmp_path: Path, photos: Path) -> Store:
    store = Store.create(tmp_path / "index", Manifest.for_model(FakeModel(), "none"))
    take_in(store, photos)
    return store


def take_in(store: Store, photos: Path) -> None:
    build_index([photos], store, PhotoEncoder(FakeModel(), "none"), workers=0)


def caption(store: Store, writer: FakeCaptioner | None = None, **options: object) -> CaptionReport:
    settings = {"workers": 0, **options}
    return index_captions(store, writer or FakeCaptioner(), FakeModel().encode_texts, **settings)  # type: ignore[arg-type]


def texts(store: Store) -> dict[str, str]:
    """Return the captions of a store by the file name of their photos."""
    ids = store.list_live_ids()
    captions = store.captions.read_captions(ids)
    return {
        photo.path.stem: captions[photo.id].text for photo in store.read_photos(ids) if photo.id in captions
    }


def test_each_photo_gets_its_caption_once(store: Store) -> None:
    assert (store.captions.version, store.num_captions, texts(store)) == (0, 0, {})
    assert not (store.folder / "tables" / "captions.lance").exists(), "as in indexes from before"
    old = Store.open(store.folder)
    report = caption(store, batch_size=3)
    assert (report.written, report.num_kept, report.failed) == (4, 0, ())
    assert texts(store) == {name: f"a {name} thing" for name in COLOURS}
    writer = FakeCaptioner()
    assert caption(store, writer).num_kept == 4 and writer.num_pictures == 0
    old.refresh()
    assert texts(old) == texts(Store.open(store.folder)) == texts(store)
    ids, _ = store.captions.list_ids_and_photos()
    assert np.allclose(
        store.captions.read_vectors(ids[::-1]),
        [
            colour_vector(caption.text)
            for caption in reversed(list(store.captions.read_captions(store.list_live_ids()).values()))
        ],
        atol=1e-3,
    )


def test_only_new_photos_are_captioned(store: Store, photos: Path) -> None:
    caption(store)
    (photos / "red.png").rename(photos / "scarlet.png")  # moved: known by its content
    Image.new("RGB", (20, 16), (250, 250, 0)).save(photos / "blue.png")  # edited: another photo
    take_in(store, photos)
    writer = FakeCaptioner()
    report = caption(store, writer)
    assert (report.written, report.num_kept, writer.num_pictures) == (1, 3, 1)
    assert texts(store)["blue"] == "a yellow thing" and texts(store)["scarlet"] == "a red thing"


def test_another_captioner_writes_them_anew(store: Store) -> None:
    caption(store)
    before, _ = store.captions.list_ids_and_photos()
    report = caption(store, FakeCaptioner(*SKETCHER))
    assert (report.written, report.num_kept) == (4, 0)
    assert store.captions.count_by_captioner() == {"sketcher": 4} and store.num_captions == 4
    after, owners = store.captions.list_ids_and_photos()
    assert not set(before.tolist()) & set(after.tolist()), "an id stays with its text: FAISS' files go by it"
    assert sorted(owners.tolist()) == store.list_live_ids().tolist()


def test_only_photos_beneath_the_folders(store: Store, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "other", ["a.png"])[0].parent
    take_in(store, other)
    assert caption(store, roots=[other]).written == 1
    assert list(texts(store)) == ["a"]
    assert caption(store).written == 4


def test_what_was_written_before_a_stop_stays(store: Store) -> None:
    class Stopped(FakeCaptioner):
        def caption(self, pictures_BHWC: np.ndarray, *_: object) -> list[str]:
            if self.num_pictures:
                raise KeyboardInterrupt
            return super().caption(pictures_BHWC)

    with pytest.raises(KeyboardInterrupt):
        caption(store, Stopped(), batch_size=3)
    assert store.num_captions == 3
    writer = FakeCaptioner()
    assert (caption(store, writer).num_kept, writer.num_pictures) == (3, 1)


def test_photos_that_are_not_what_they_were(store: Store, photos: Path) -> None:
    (photos / "red.png").unlink()
    (photos / "green.png").write_text("no picture")
    shutil.copy(photos / "white.png", photos / "blue.png")
    report = caption(store)
    reasons = {failure.path.stem: failure.reason for failure in report.failed}
    assert reasons["blue"] == CHANGED and "text file" in reasons["green"]
    assert reasons["red"] == "it is no longer there"
    assert texts(store) == {"white": "a white thing"}


def test_another_place_of_a_photo_serves(store: Store, photos: Path) -> None:
    shutil.copy(photos / "red.png", photos / "zz.png")
    take_in(store, photos)
    (photos / "red.png").unlink()
    assert caption(store).failed == ()
    assert "a red thing" in texts(store).values()


def test_an_empty_text_is_a_failure(store: Store) -> None:
    class Mute(FakeCaptioner):
        def caption(self, pictures_BHWC: np.ndarray, *_: object) -> list[str]:
            return [text.replace("a red thing", " ") for text in super().caption(pictures_BHWC)]

    report = caption(store, Mute())
    assert [failure.path.stem for failure in report.failed] == ["red"] and report.written == 3


def test_prune_forgets_captions_too(store: Store, photos: Path) -> None:
    caption(store)
    (photos / "green.png").unlink()
    take_in(store, photos)
    assert store.num_captions == 3
    store.prune()
    assert store.captions.count_by_captioner() == {"painter": 3} and "green" not in texts(store)


def test_nearest_captions_follow_the_table(store: Store) -> None:
    caption(store)
    search = CaptionSearch(store)

    def check() -> None:
        ids, owners = store.captions.list_ids_and_photos()
        cosines = store.captions.read_vectors(ids).astype(np.float32) @ colour_vector("red")
        want = owners[np.lexsort((ids, -cosines))]
        actual = search.find_nearest(colour_vector("red").astype(np.float32), 3, store.list_live_ids())
        assert actual.tolist() == want[:3].tolist()
        photo_ids = np.concatenate([owners[1:], [999]])
        cosine_of_photo = dict(zip(owners.tolist(), cosines.tolist(), strict=True))
        other_cosines = [cosine_of_photo[photo] for photo in photo_ids[:-1].tolist()]
        assert search.compute_cosines(colour_vector("red").astype(np.float32), photo_ids) == pytest.approx(
            [*other_cosines, np.mean(other_cosines)], abs=1e-3
        )

    check()
    store.captions.put(  # the photo's last caption counts, here the opposite of what it shows
        [
            NewCaption(int(id_), "turned", "x", "y", colour_vector(colour).astype(np.float16))
            for id_, colour in zip(store.list_live_ids()[:2], ("green", "red"), strict=True)
        ]
    )
    check()
    assert CaptionSearch(Store.open(store.folder)).find_nearest(
        colour_vector("red").astype(np.float32), 1, store.list_live_ids()[2:]
    ).tolist() == [int(store.list_live_ids()[2])]


# Search with the tiny model: brute force over what is stored

TEXT = "a red dog in the snow"


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    folder = tmp_path_factory.mktemp("captions")
    model = tiny_model(folder / "tiny")
    write_pictures(folder / "photos", [f"{n:02}.png" for n in range(24)])
    store = Store.create(folder / "index", Manifest.for_model(model, "none"))
    build_index([folder / "photos"], store, PhotoEncoder(model, "none"), workers=0)
    return Searcher(store, model, hold_bytes=0)


@pytest.fixture
def captioned(searcher: Searcher) -> dict[int, float]:
    """Caption all but two photos, the last ones by ITC with the best captions; return the captions' cosines."""
    assert searcher.store is not None
    itc = score_stored_photos(searcher, TEXT)
    worst_first = sorted(itc, key=lambda id_: itc[id_])[:22]
    wanted = [
        TEXT,
        "a red dog",
        "the red dog runs",
        *(f"a cat {'abcdefghijklmnopqrs'[n]}" for n in range(19)),
    ]
    vectors = searcher.model.encode_texts(wanted)[0].astype(np.float16)
    searcher.store.captions.put(
        [
            NewCaption(id_, text, "w", "d", vector)
            for id_, text, vector in zip(worst_first, wanted, vectors, strict=True)
        ]
    )
    query_E = searcher.model.encode_texts([TEXT])[0][0]
    cosines = vectors.astype(np.float32) @ query_E
    return dict(zip(worst_first, cosines.tolist(), strict=True))


def brute_scores(model: RetrievalModel, searcher: Searcher, chosen: list[int]) -> dict[int, float]:
    assert searcher.store is not None
    itc = score_stored_photos(searcher, TEXT)
    paths = {photo.id: photo.path for photo in searcher.store.read_photos(chosen)}
    return {id_: float(match_logits(model, paths[id_], TEXT)[1]) + itc[id_] for id_ in chosen}


def by(scores: dict[int, float]) -> list[int]:
    return sorted(scores, key=lambda id_: (-scores[id_], id_))


@pytest.mark.parametrize("top", [6, 20])
def test_photos_with_near_captions_are_candidates(
    searcher: Searcher, captioned: dict[int, float], top: int
) -> None:
    k = 8
    itc = score_stored_photos(searcher, TEXT)
    near = by(captioned)[: k // CAPTIONED_SHARE]
    chosen = sorted({*by(itc)[:k], *near})
    assert not set(near) <= set(by(itc)[:k]), "captions should bring something"
    want = brute_scores(searcher.model, searcher, chosen)
    results = searcher.search(TEXT, top=top, rerank=k)
    others = [id_ for id_ in by(itc)[: max(top, k)] if id_ not in chosen]
    assert list_photo_ids(results) == (by(want) + others)[:top]
    for hit in results.hits:
        if hit.photo.id in want:
            assert hit.score == pytest.approx(want[hit.photo.id], abs=1e-4)
        assert hit.itc == pytest.approx(itc[hit.photo.id], abs=1e-5)
        assert (hit.caption is not None) == (hit.photo.id in captioned)
    assert_well_formed(results.hits)


@pytest.mark.parametrize("rerank", [0, 8])
def test_captions_may_count_in_the_score(
    searcher: Searcher, captioned: dict[int, float], rerank: int
) -> None:
    weight, top = 3.0, 8
    itc = score_stored_photos(searcher, TEXT)
    chosen = sorted({*by(itc)[:8], *by(captioned)[:8]})
    base = brute_scores(searcher.model, searcher, chosen) if rerank else {id_: itc[id_] for id_ in chosen}
    mean = float(np.mean([captioned[id_] for id_ in chosen if id_ in captioned]))
    want = {id_: base[id_] + weight * captioned.get(id_, mean) for id_ in chosen}
    results = searcher.search(TEXT, top=top, rerank=rerank, caption_weight=weight)
    assert list_photo_ids(results) == by(want)[:top] != by(base)[:top]
    assert [hit.score for hit in results.hits] == pytest.approx(
        [want[i] for i in list_photo_ids(results)], abs=2e-3 * weight
    )


def test_without_reranking_and_weight_captions_change_nothing(
    searcher: Searcher, captioned: dict[int, float]
) -> None:
    results = searcher.search(TEXT, top=8, rerank=0)
    assert list_photo_ids(results) == by(score_stored_photos(searcher, TEXT))[:8]
    assert {hit.photo.id for hit in results.hits if hit.caption} == set(captioned) & set(
        list_photo_ids(results)
    )
