"""Every kind of question beside brute force over the model: order, scores, and what becomes of broken files.

The tiny model, a real index, real picture files. ITC truth is the stored vectors, ITM truth one pair at a time.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SIDE, tiny_checkpoint, tiny_model, write_pictures

from engine.errors import IndexStateError, QueryError
from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.models.loading import load_model
from engine.models.photo_encoder import PhotoEncoder
from engine.models.retrieval_model import BEHIND, RetrievalModel
from engine.search import searcher as searcher_module
from engine.search.searcher import Searcher
from engine.types import Hit, Results
from indexer.build import build_index

QUERY = "a red dog in the snow"
NAMES = [f"album {n % 3}/photo {n:02}.png" for n in range(24)]
TEXTS = [
    "a red dog",
    "the cat runs in the snow",
    "a blue house",
    "snow on the house",
    "green",
    "the red house",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RetrievalModel:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def shelf(model: RetrievalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ and an index of it for each way of keeping patches."""
    folder = tmp_path_factory.mktemp("shelf")
    write_pictures(folder / "photos", NAMES)
    for features in ("store", "int8", "none"):
        store = Store.create(folder / features, Manifest.for_model(model, features))
        build_index([folder / "photos"], store, PhotoEncoder(model, features), workers=0)
        assert store.num_photos == len(NAMES)
    return folder


@pytest.fixture(scope="module")
def searcher(shelf: Path, model: RetrievalModel) -> Searcher:
    """Without patches: what is read is read from the files."""
    return Searcher(Store.open(shelf / "none"), model, hold_bytes=0)


@pytest.fixture
def copied(
    shelf: Path, tmp_path: Path, model: RetrievalModel
) -> Callable[[str], tuple[Searcher, list[Path]]]:
    """features -> an index of photos of its own, that a test may damage, and the photos' paths."""

    def copy(features: str) -> tuple[Searcher, list[Path]]:
        photos = Path(shutil.copytree(shelf / "photos", tmp_path / "photos"))
        store = Store.create(tmp_path / "index", Manifest.for_model(model, features))
        build_index([photos], store, PhotoEncoder(model, features), workers=0)
        return Searcher(store, model, hold_bytes=0), [photos / name for name in NAMES]

    return copy


# Brute force


def picture(path: Path) -> np.ndarray:
    """By Pillow alone."""
    return np.array(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def match_logits(model: RetrievalModel, path: Path, text: str) -> np.ndarray:
    ids, mask, _ = model.tokenizer([text])
    return model.net.match(model.photo_keys(model.encode_patches(picture(path)[None])), ids, mask).numpy()[0]


def fresh_itc(model: RetrievalModel, path: Path, text: str) -> float:
    photo_QE = model.encode_photos(model.encode_patches(picture(path)[None]))[0]
    return float((photo_QE @ model.encode_texts([text])[0][0]).max())


def stored_itc(searcher: Searcher, text: str) -> dict[int, float]:
    """By id."""
    assert searcher.store is not None
    ids = searcher.store.live_ids()
    text_E = searcher.model.encode_texts([text])[0][0]
    scores = (searcher.store.vectors(ids).astype(np.float64) @ text_E).max(axis=1)
    return dict(zip(ids.tolist(), scores.tolist(), strict=True))


def sort_by(scores: dict[int, float]) -> list[int]:
    return sorted(scores, key=lambda id_: (-scores[id_], id_))


def ids_of(results: Results) -> list[int]:
    return [hit.photo.id for hit in results.hits]


def assert_well_formed(hits: Sequence) -> None:
    """Ranks count from one and scores fall with them, whatever was reranked."""
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert all(first.score >= second.score for first, second in itertools.pairwise(hits))


def assert_reranked(hit: Hit, itc: float, logits: np.ndarray) -> None:
    assert hit.itc == pytest.approx(itc, abs=1e-5)
    assert hit.score == pytest.approx(logits[1] + itc, abs=1e-4)
    assert hit.itm == pytest.approx(np.exp(logits[1]) / np.exp(logits).sum(), abs=1e-4)


# Text to photos


def test_itc_alone(searcher: Searcher) -> None:
    for text in (QUERY, "cat", "the blue house"):
        want = stored_itc(searcher, text)
        found = searcher.search(text, top=9, rerank=0)
        assert ids_of(found) == sort_by(want)[:9]
        assert [hit.score for hit in found.hits] == pytest.approx([want[i] for i in ids_of(found)], abs=1e-5)
        assert all(hit.itc == hit.score and hit.itm is None for hit in found.hits)
        assert_well_formed(found.hits)
        assert found.notes == found.failures == ()
        assert found.seconds.keys() == {"encode", "retrieve"}


def test_itc_tells_photos_and_texts_apart(searcher: Searcher) -> None:
    """Were all scores equal, every order would be right."""
    tops = {searcher.search(text, top=1, rerank=0).hits[0].photo.id for text in (*TEXTS, QUERY)}
    assert len(tops) > 1
    assert np.std(list(stored_itc(searcher, QUERY).values())) > 0.01


@pytest.mark.parametrize("rerank", [1, 7, 24, 128])
def test_reranked(searcher: Searcher, model: RetrievalModel, rerank: int) -> None:
    itc = stored_itc(searcher, QUERY)
    by_itc = sort_by(itc)
    paths = {photo.id: photo.path for photo in searcher.store.photos(by_itc)}  # type: ignore[union-attr]
    logits = {id_: match_logits(model, paths[id_], QUERY) for id_ in by_itc}
    chosen = {id_: float(logits[id_][1]) + itc[id_] for id_ in by_itc[:rerank]}
    found = searcher.search(QUERY, top=24, rerank=rerank)
    assert ids_of(found) == sort_by(chosen) + by_itc[rerank:]
    assert_well_formed(found.hits)
    for hit in found.hits[:rerank]:
        assert_reranked(hit, itc[hit.photo.id], logits[hit.photo.id])
    for hit in found.hits[rerank:]:
        assert (hit.itm, hit.itc) == (None, pytest.approx(itc[hit.photo.id], abs=1e-5))
        assert hit.score == pytest.approx(hit.itc - BEHIND, abs=1e-6)
    assert rerank < 7 or ids_of(found) != by_itc, "ITM should change something"
    assert ids_of(searcher.search(QUERY, top=3, rerank=rerank)) == ids_of(found)[:3]


def test_candidates_come_in_batches(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    want = searcher.search(QUERY, top=24)
    paths = [hit.photo.path for hit in want.hits]
    ranked = searcher.rerank(QUERY, paths)
    monkeypatch.setattr(searcher_module, "PHOTOS_AT_ONCE", 5)
    for got, other in ((searcher.search(QUERY, top=24), want), (searcher.rerank(QUERY, paths), ranked)):
        assert ids_of(got) == ids_of(other)
        assert [hit.score for hit in got.hits] == pytest.approx([hit.score for hit in other.hits], abs=1e-4)


@pytest.mark.parametrize(("features", "noise"), [("store", 0.01), ("int8", 0.05)])
def test_stored_patches_give_the_same_hits(
    shelf: Path, searcher: Searcher, model: RetrievalModel, features: str, noise: float
) -> None:
    kept = Searcher(Store.open(shelf / features), model)
    for text in (QUERY, "green"):
        got, want = kept.search(text, top=24), searcher.search(text, top=24)
        scores = {hit.photo.digest: hit.score for hit in want.hits}
        assert [hit.score for hit in got.hits] == pytest.approx(
            [scores[h.photo.digest] for h in got.hits], abs=noise
        )
        assert sorted(scores.values()) == pytest.approx(sorted(hit.score for hit in got.hits), abs=noise)


@pytest.mark.parametrize("features", ["store", "none"])
def test_what_is_held_changes_nothing(
    copied: Callable[[str], tuple[Searcher, list[Path]]], model: RetrievalModel, features: str
) -> None:
    plain, paths = copied(features)
    holding = Searcher(plain.store, model, hold_bytes=2**20)

    def ask(searcher: Searcher, text: str) -> list[Results]:
        return [searcher.search(text, top=24, rerank=20), searcher.rerank(text, paths)]

    for text in (QUERY, QUERY, "green"):
        for got, want in zip(ask(holding, text), ask(plain, text), strict=True):
            assert ids_of(got) == ids_of(want)
            assert [hit.score for hit in got.hits] == pytest.approx(
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
    want = searcher.search(QUERY, top=24)
    read = []
    real = RetrievalModel.match
    monkeypatch.setattr(RetrievalModel, "folding_pays", True)
    monkeypatch.setattr(RetrievalModel, "photo_keys", None)  # not called
    monkeypatch.setattr(
        RetrievalModel, "match", lambda self, *given: read.append(given[0]) or real(self, *given)
    )
    got = searcher.search(QUERY, top=24)
    assert read and all(isinstance(photos, torch.Tensor) for photos in read)
    assert ids_of(got) == ids_of(want)
    assert [hit.score for hit in got.hits] == pytest.approx([hit.score for hit in want.hits], abs=1e-4)


def test_slow_encoding_is_told(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(searcher, "tell", lines.append)
    searcher.search(QUERY)
    assert lines == []
    monkeypatch.setattr(searcher_module, "SLOW_SECONDS", 0.0)
    searcher.search(QUERY)
    assert len(lines) == 1 and lines[0].startswith("16 of 24 candidates encoded, ")


def test_stored_patches_need_no_files(
    copied: Callable[[str], tuple[Searcher, list[Path]]], shelf: Path
) -> None:
    kept, paths = copied("store")
    before = kept.search(QUERY, top=24), kept.rerank(QUERY, paths), kept.match(paths[3], TEXTS)
    shutil.rmtree(paths[0].parents[1])
    after = kept.search(QUERY, top=24), kept.rerank(QUERY, paths), kept.match(paths[3], TEXTS)
    assert [results.hits for results in after] == [results.hits for results in before]
    assert after[0].failures == after[1].failures == ()


def test_k_beyond_the_collection(searcher: Searcher) -> None:
    found = searcher.search(QUERY, top=5000, rerank=5000)
    assert len(found.hits) == 24 and found.notes == ("The index holds 24 photos.",)
    assert searcher.search(QUERY, top=24).notes == ()


def test_an_empty_index(tmp_path: Path, model: RetrievalModel, shelf: Path) -> None:
    empty = Searcher(Store.create(tmp_path / "index", Manifest.for_model(model, "none")), model)
    for found in (
        empty.search(QUERY),
        empty.search(QUERY, rerank=0),
        empty.similar(shelf / "photos" / NAMES[0]),
    ):
        assert found.hits == found.failures == ()
        assert found.notes == ("The index holds no photos; add some with `qseek index FOLDER`.",)
    with pytest.raises(QueryError, match="The index holds no texts"):
        empty.match(shelf / "photos" / NAMES[0], None)


def test_one_photo(tmp_path: Path, model: RetrievalModel) -> None:
    (path,) = write_pictures(tmp_path / "photos", ["one.png"])
    store = Store.create(tmp_path / "index", Manifest.for_model(model, "none"))
    build_index([tmp_path / "photos"], store, PhotoEncoder(model, "none"), workers=0)
    one = Searcher(store, model)
    found = one.search(QUERY)
    (hit,) = found.hits
    assert hit.photo.path == path and found.notes == ("The index holds 1 photo.",)
    assert_reranked(hit, stored_itc(one, QUERY)[hit.photo.id], match_logits(model, path, QUERY))
    alone = one.similar(path)
    assert alone.hits == ()
    assert alone.notes == ("The index holds no other photo; add some with `qseek index FOLDER`.",)


def test_a_long_text_is_said_to_be_cut(searcher: Searcher) -> None:
    words = "a red dog runs in the snow on the house"  # ten tokens fit
    assert searcher.search(words, top=3).notes == ()
    for rest, end in ((" cat", "token was"), (" cat and", "4 tokens were")):
        found = searcher.search(words + rest, top=3)
        assert found.notes == (f"The model reads 10 tokens; the text's last {end} left out.",)
        assert found.hits == searcher.search(words, top=3).hits
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
        lambda: searcher.add_texts(["a dog", text]),
    ]
    for ask in asked:
        with pytest.raises(QueryError, match="is empty; describe what the photo shows"):
            ask()


def test_space_around_a_text_does_not_matter(searcher: Searcher) -> None:
    assert searcher.search(f"  {QUERY}\n").hits == searcher.search(QUERY).hits


def test_photos_that_cannot_be_read_come_behind(copied: Callable[[str], tuple[Searcher, list[Path]]]) -> None:
    searcher, _ = copied("none")
    before = searcher.search(QUERY, top=24)
    gone, cut = before.hits[0].photo, before.hits[4].photo
    gone.path.unlink()
    cut.path.write_bytes(cut.path.read_bytes()[:60])
    after = searcher.search(QUERY, top=24)
    assert {failure.path: failure.reason.split(" (")[0] for failure in after.failures} == {
        gone.path: "it is no longer there",
        cut.path: "the file is cut off",
    }
    rest = [hit for hit in before.hits if hit.photo not in (gone, cut)]
    assert [hit.photo for hit in after.hits[:22]] == [hit.photo for hit in rest]
    assert [h.score for h in after.hits[:22]] == pytest.approx([h.score for h in rest], abs=1e-4)
    itc = stored_itc(searcher, QUERY)
    assert [hit.photo.id for hit in after.hits[22:]] == sort_by({p.id: itc[p.id] for p in (gone, cut)})
    for hit in after.hits[22:]:
        assert hit.itm is None and hit.score == pytest.approx(itc[hit.photo.id] - BEHIND, abs=1e-5)
    assert_well_formed(after.hits)
    # Behind the candidates, in front of what was no candidate: both in ITC's order.
    some = searcher.search(QUERY, top=24, rerank=10)
    assert_well_formed(some.hits)
    unread = [hit.photo.id for hit in some.hits if hit.itm is None]
    assert unread == sort_by({id_: itc[id_] for id_ in unread}) and len(unread) >= 14


def test_when_no_file_can_be_read_itc_is_the_order(
    copied: Callable[[str], tuple[Searcher, list[Path]]],
) -> None:
    """The drive is away: the hits still say what lies there."""
    searcher, paths = copied("none")
    shutil.rmtree(paths[0].parents[1])
    found = searcher.search(QUERY, top=24)
    assert (
        ids_of(found)
        == ids_of(searcher.search(QUERY, top=24, rerank=0))
        == sort_by(stored_itc(searcher, QUERY))
    )
    assert len(found.failures) == 24 and all(hit.itm is None for hit in found.hits)
    assert_well_formed(found.hits)


def test_a_copy_stands_in_for_a_file_that_is_gone(tmp_path: Path, model: RetrievalModel) -> None:
    paths = write_pictures(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    shutil.copy(paths[1], tmp_path / "photos" / "z.png")
    store = Store.create(tmp_path / "index", Manifest.for_model(model, "none"))
    build_index([tmp_path / "photos"], store, PhotoEncoder(model, "none"), workers=0)
    searcher = Searcher(store, model, hold_bytes=0)
    before = searcher.search(QUERY)
    paths[1].unlink()
    after = searcher.search(QUERY)
    assert after.hits == before.hits and len(after.hits) == 3 and after.failures == ()


def test_photos_of_another_process_are_found(
    copied: Callable[[str], tuple[Searcher, list[Path]]], model: RetrievalModel
) -> None:
    searcher, paths = copied("none")
    assert len(searcher.search(QUERY, top=50).hits) == 24
    (new,) = write_pictures(paths[0].parents[1], ["new.png"], seed=77)
    paths[5].unlink()
    other = Store.open(searcher.store.folder)  # type: ignore[union-attr]
    build_index([paths[0].parents[1]], other, PhotoEncoder(model, "none"), workers=0)
    assert searcher.rerank(QUERY, [new]).hits[0].photo.id >= 0
    found = searcher.search(QUERY, top=50)
    assert {hit.photo.path for hit in found.hits} == {new, *paths} - {paths[5]}


def test_bfloat16_is_near(shelf: Path, searcher: Searcher, tmp_path: Path) -> None:
    half = Searcher(Store.open(shelf / "none"), tiny_model(tmp_path / "tiny", dtype="bfloat16"))
    for rerank in (0, 128):
        want = {hit.photo.id: hit for hit in searcher.search(QUERY, top=24, rerank=rerank).hits}
        got = {hit.photo.id: hit for hit in half.search(QUERY, top=24, rerank=rerank).hits}
        assert got.keys() == want.keys()
        first, second = (np.array([hits[i].score for i in want]) for hits in (want, got))
        assert np.corrcoef(first, second)[0, 1] > 0.99
        assert np.abs(first - second).max() < 0.25


# Photo to photos


def mean_cosines(store: Store, photo_QE: np.ndarray) -> dict[int, float]:
    ids = store.live_ids()
    means = (store.vectors(ids).astype(np.float64) * photo_QE.astype(np.float64)).sum(axis=2).mean(axis=1)
    return dict(zip(ids.tolist(), means.tolist(), strict=True))


def test_like_an_indexed_photo(copied: Callable[[str], tuple[Searcher, list[Path]]]) -> None:
    searcher, paths = copied("none")
    store = searcher.store
    assert store is not None
    photo = store.photo_at(paths[7])
    assert photo is not None
    want = mean_cosines(store, store.vectors([photo.id])[0])
    del want[photo.id]
    for number, top in enumerate((5, 23, 100)):
        found = searcher.similar(paths[7], top=top)
        assert ids_of(found) == sort_by(want)[:top]
        assert [hit.score for hit in found.hits] == pytest.approx([want[i] for i in ids_of(found)], abs=1e-5)
        assert all(hit.itm is None and hit.itc == hit.score for hit in found.hits)
        assert_well_formed(found.hits)
        assert found.notes == (("The index holds 23 other photos.",) if top == 100 else ())
        if number == 0:
            paths[7].unlink()  # its vectors are there, the file is not needed


def test_like_another_photo(searcher: Searcher, model: RetrievalModel, shelf: Path, tmp_path: Path) -> None:
    (new,) = write_pictures(tmp_path, ["new.png"], seed=99)
    store = searcher.store
    assert store is not None
    want = mean_cosines(store, model.encode_photos(model.encode_patches(picture(new)[None]))[0])
    found = searcher.similar(new, top=24)
    assert ids_of(found) == sort_by(want)
    assert [hit.score for hit in found.hits] == pytest.approx([want[i] for i in ids_of(found)], abs=1e-5)
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


# Photo to texts


def text_truth(
    model: RetrievalModel, path: Path, texts: Sequence[str]
) -> tuple[dict[int, float], list[np.ndarray]]:
    """ITC by the text's number, and the match logits."""
    itc = {number: fresh_itc(model, path, text) for number, text in enumerate(texts)}
    return itc, [match_logits(model, path, text) for text in texts]


@pytest.fixture(params=["given", "indexed"])
def asked(
    request: pytest.FixtureRequest, searcher: Searcher, model: RetrievalModel, tmp_path: Path
) -> Iterator[tuple[Searcher, list[str] | None]]:
    if request.param == "given":
        yield searcher, TEXTS
    else:
        own = Searcher(Store.create(tmp_path / "index", Manifest.for_model(model, "none")), model)
        assert own.add_texts(TEXTS[:4]) == 4
        assert own.add_texts([TEXTS[0], *TEXTS[4:], TEXTS[4] + " "]) == 2
        yield own, None


@pytest.mark.parametrize("rerank", [0, 2, 6, 128])
def test_texts_of_a_photo(
    asked: tuple[Searcher, list[str] | None], model: RetrievalModel, shelf: Path, rerank: int
) -> None:
    searcher, texts = asked
    path = shelf / "photos" / NAMES[2]
    itc, logits = text_truth(model, path, TEXTS)
    by_itc = sort_by(itc)
    chosen = {number: float(logits[number][1]) + itc[number] for number in by_itc[:rerank]}
    atol = 1e-5 if texts else 1e-3  # indexed vectors are float16
    for top in (4, 50):
        found = searcher.match(path, texts, top=top, rerank=rerank)
        assert [hit.text for hit in found.hits] == [TEXTS[n] for n in sort_by(chosen) + by_itc[rerank:]][:top]
        assert_well_formed(found.hits)
        for hit in found.hits:
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
    first, second = Searcher(store, model), Searcher(Store.open(store.folder), model)
    first.add_texts(TEXTS[:2])
    assert {hit.text for hit in second.match(path, None).hits} == set(TEXTS[:2])
    first.add_texts(TEXTS)
    assert {hit.text for hit in second.match(path, None).hits} == set(TEXTS)


def test_texts_are_said_to_be_cut(searcher: Searcher, shelf: Path) -> None:
    path, long = shelf / "photos" / NAMES[0], "the red house " * 4
    assert searcher.match(path, TEXTS).notes == ()
    assert searcher.match(path, [*TEXTS, long]).notes == (
        "1 text was longer than the model reads and cut to 10 tokens.",
    )
    assert searcher.match(path, [long, "a " + long]).notes[0].startswith("2 texts were longer")


def test_the_same_text_twice_is_one(searcher: Searcher, shelf: Path) -> None:
    found = searcher.match(shelf / "photos" / NAMES[0], ["cat", "dog", " cat "])
    assert sorted(hit.text for hit in found.hits) == ["cat", "dog"]


def test_no_texts_to_choose_from(searcher: Searcher, shelf: Path) -> None:
    with pytest.raises(QueryError, match="no texts to choose from"):
        searcher.match(shelf / "photos" / NAMES[0], [])


def test_adding_no_texts(searcher: Searcher) -> None:
    assert searcher.add_texts([]) == 0


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
        n: float(match_logits(model, p, QUERY)[1]) + fresh_itc(model, p, QUERY)
        for n, p in enumerate(known + new)
    }
    found = searcher.rerank(QUERY, paths)
    assert [hit.photo.path for hit in found.hits] == [(known + new)[n] for n in sort_by(want)]
    assert_well_formed(found.hits)
    for hit, number in zip(found.hits, sort_by(want), strict=True):
        assert_reranked(
            hit, fresh_itc(model, hit.photo.path, QUERY), match_logits(model, hit.photo.path, QUERY)
        )
        assert hit.score == pytest.approx(want[number], abs=1e-4)
        assert (hit.photo.id == -1) == (hit.photo.path in new)
    assert [(one.path, one.reason) for one in found.failures] == [
        (gone, "it is no longer there"),
        (broken, "it is a text file, not a picture"),
    ]
    assert searcher.rerank(QUERY, paths, top=2).hits == found.hits[:2]


def test_rerank_with_stored_patches(
    shelf: Path, searcher: Searcher, model: RetrievalModel, tmp_path: Path
) -> None:
    """Stored ones, read ones and unreadable ones in one call, each with its own score."""
    kept = Searcher(Store.open(shelf / "store"), model)
    new = write_pictures(tmp_path, ["one.png", "two.png"], seed=5)
    known = [shelf / "photos" / name for name in NAMES[:5]]
    paths = [new[0], known[0], tmp_path / "gone.png", known[1], new[1], *known[2:]]
    got, want = kept.rerank(QUERY, paths), searcher.rerank(QUERY, paths)
    scores = {hit.photo.path: hit.score for hit in want.hits}
    assert len(scores) == 7 and got.failures == want.failures
    assert {hit.photo.path: hit.score for hit in got.hits} == pytest.approx(scores, abs=0.02)
    assert_well_formed(got.hits)


def test_each_path_of_a_photo_is_its_own_answer(tmp_path: Path, model: RetrievalModel) -> None:
    (path,) = write_pictures(tmp_path / "photos", ["a.png"])
    copy = Path(shutil.copy(path, tmp_path / "photos" / "b.png"))
    store = Store.create(tmp_path / "index", Manifest.for_model(model, "none"))
    build_index([tmp_path / "photos"], store, PhotoEncoder(model, "none"), workers=0)
    found = Searcher(store, model).rerank(QUERY, [copy, path])
    assert [hit.photo.path for hit in found.hits] == [copy, path]
    assert found.hits[0].photo.paths == (copy, path) and found.hits[0].photo.id == found.hits[1].photo.id


def test_nothing_to_rerank(searcher: Searcher, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="no photo to rerank"):
        searcher.rerank(QUERY, [])
    found = searcher.rerank(QUERY, [tmp_path / "gone.jpg"])
    assert found.hits == () and len(found.failures) == 1


# Which index, which model


def test_without_an_index(model: RetrievalModel, shelf: Path) -> None:
    bare, path = Searcher(None, model), shelf / "photos" / NAMES[2]
    for ask in (
        lambda: bare.search(QUERY),
        lambda: bare.similar(path),
        lambda: bare.match(path, None),
        lambda: bare.add_texts(["a dog"]),
    ):
        with pytest.raises(IndexStateError, match="There is no index: make one with `qseek index FOLDER`"):
            ask()
    (hit,) = bare.rerank(QUERY, [path]).hits
    assert hit.photo.id == -1
    assert_reranked(hit, fresh_itc(model, path, QUERY), match_logits(model, path, QUERY))
    assert len(bare.match(path, TEXTS).hits) == len(TEXTS)


def test_another_models_index_is_refused(shelf: Path, tmp_path: Path) -> None:
    other = load_model(str(tiny_checkpoint(tmp_path / "other", seed=1)), device="cpu")
    with pytest.raises(IndexStateError, match=r"made with model .*tiny.*this is model .*other.*--reindex"):
        Searcher(Store.open(shelf / "none"), other)


def test_a_model_that_cannot_rerank_yet_keeps_itcs_order(
    searcher: Searcher, model: RetrievalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = searcher.search("a red dog", rerank=0)
    paths = [hit.photo.path for hit in plain.hits]
    monkeypatch.setattr(model.net, "config", replace(model.config, match_ready=False))
    results = searcher.search("a red dog")
    assert results.hits == plain.hits and all(hit.itm is None for hit in results.hits)
    assert any("matching head is not trained" in note for note in results.notes)
    again = searcher.rerank("a red dog", paths[::-1])
    assert [hit.photo.path for hit in again.hits] == paths and all(hit.itm is None for hit in again.hits)
    found = searcher.match(paths[0], ["a red dog", "a blue house"])
    assert all(hit.itm is None for hit in found.hits) and found.notes
    assert not searcher.search("a red dog", rerank=0).notes  # asked for the cosine: nothing to say


def test_a_checkpoint_may_weigh_its_logits(
    searcher: Searcher, model: RetrievalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Search, rerank and match all count a logit as the config says; the probability stays the head's own."""
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
