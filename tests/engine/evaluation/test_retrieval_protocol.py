"""The whole protocol against brute force, one pair at a time; in blocks, on two devices, stopped and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny import SIDE, tiny_model

from engine.errors import DataError
from engine.evaluation import retrieval_protocol
from engine.evaluation.recall import Evaluation, collect_pairs, recall, select_best_columns
from engine.evaluation.retrieval_cache import EvaluationCache
from engine.evaluation.retrieval_protocol import UnreadablePicturesError, evaluate_retrieval
from engine.models.retrieval_model import RetrievalModel

PICTURES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
WORDS = ("red", "green", "blue", "dog", "cat", "snow", "house", "runs", "in", "the", "on", "sea")
CAPTIONS = [[f"a {word}", f"the {word} in the house"][: 1 + number % 2] for number, word in enumerate(WORDS)]
TEXTS = [text for group in CAPTIONS for text in group]
OWNER = np.repeat(np.arange(12), [len(group) for group in CAPTIONS])
MEMORY = 2**24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RetrievalModel:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def scores(model: RetrievalModel) -> tuple[np.ndarray, np.ndarray]:
    """ITC and match logit of every pair, one by one."""
    assert PICTURES.shape == (12, SIDE, SIDE, 3)
    itc, itm = np.zeros((12, len(TEXTS))), np.zeros((12, len(TEXTS)))
    for row, picture in enumerate(PICTURES):
        patches = model.encode_patches(picture[None])
        for column, text in enumerate(TEXTS):
            itc[row, column] = (model.encode_photos(patches)[0] @ model.encode_texts([text])[0][0]).max()
            itm[row, column] = model.match(model.compute_photo_keys(patches), [text])[0, 1]
    return itc, itm


def read(start: int, stop: int) -> list[np.ndarray | None]:
    return list(PICTURES[start:stop])


@pytest.fixture
def run(model: RetrievalModel, tmp_path: Path) -> Callable[..., Evaluation]:
    """Evaluate, each time anew unless a folder is given."""
    count = iter(range(100))

    def evaluated(
        folder: Path | None = None, models: Sequence[RetrievalModel] = (model,), **options
    ) -> Evaluation:
        cache = EvaluationCache(folder or tmp_path / str(next(count)), model)
        options = {"read": read, "captions": CAPTIONS, "memory": MEMORY} | options
        return evaluate_retrieval(models, options.pop("read"), options.pop("captions"), cache, **options)

    return evaluated


def same(one: Evaluation, other: Evaluation) -> None:
    assert one.report.before == other.report.before and one.report.after == other.report.after
    assert one.by_k == other.by_k and one.report.num_pairs == other.report.num_pairs
    for a, b in ((one.before, other.before), (one.after, other.after)):
        for name in ("tr", "ir", "best_captions", "best_photos"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("k", [0, 2, 5, 100])
def test_against_brute_force(
    run: Callable[..., Evaluation], scores: tuple[np.ndarray, np.ndarray], k: int
) -> None:
    itc, itm = scores
    result = run(k=k)
    report = result.report
    assert (report.num_photos, report.num_captions, report.k) == (12, 18, k)
    assert report.before == pytest.approx(recall(itc, OWNER))
    if not k:
        assert report.after == {} and report.num_pairs == 0 and result.by_k == {}
        return
    tr, ir = np.empty(12, int), np.empty(18, int)
    for row in range(12):
        order = sorted(range(18), key=lambda m: -itc[row, m])
        best = sorted(order[:k], key=lambda m: -itm[row, m] - itc[row, m]) + order[k:]
        tr[row] = min(best.index(m) for m in range(18) if OWNER[m] == row)
        assert result.after.best_captions[row].tolist() == best[: min(5, k)]
    for column in range(18):
        order = sorted(range(12), key=lambda n: -itc[n, column])
        best = sorted(order[:k], key=lambda n: -itm[n, column] - itc[n, column]) + order[k:]
        ir[column] = best.index(OWNER[column])
        assert result.after.best_photos[column].tolist() == best[: min(5, k)]
    assert np.array_equal(result.after.tr, tr) and np.array_equal(result.after.ir, ir)
    for at in (1, 5, 10):
        assert report.after[f"TR@{at}"] == pytest.approx(100 * (tr < at).mean())
        assert report.after[f"IR@{at}"] == pytest.approx(100 * (ir < at).mean())
    wanted = {(n, m) for n in range(12) for m in select_best_columns(itc, k)[n].tolist()}
    wanted |= {(n, m) for m in range(18) for n in select_best_columns(itc.T, k)[m].tolist()}
    assert report.num_pairs == len(wanted)


def test_recall_by_k_is_what_smaller_ks_give(run: Callable[..., Evaluation]) -> None:
    whole = run(k=6)
    assert sorted(whole.by_k) == [1, 2, 4, 6]
    for k in (1, 2, 4):
        assert whole.by_k[k] == run(k=k).report.after
    assert whole.by_k[6] == whole.report.after


def test_pairs_are_read_once() -> None:
    captions_of_photos, photos_of_captions = np.array([[0, 1], [2, 1]]), np.array([[0], [1], [1]])
    got = collect_pairs(captions_of_photos, photos_of_captions)
    assert got.tolist() == [0 * 3 + 0, 0 * 3 + 1, 1 * 3 + 1, 1 * 3 + 2]


def test_small_blocks_change_nothing(run: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch) -> None:
    want = run(k=5)
    monkeypatch.setattr(
        retrieval_protocol, "_split_memory", lambda *_: retrieval_protocol._Budget(score_rows=5, texts=4)
    )
    monkeypatch.setattr(retrieval_protocol, "PHOTO_BATCH", 5)
    same(run(k=5), want)


def test_two_devices_share_the_work(
    run: Callable[..., Evaluation], model: RetrievalModel, tmp_path: Path
) -> None:
    other = tiny_model(tmp_path / "other")
    assert other.digest == model.digest
    same(run(k=5, models=(model, other)), run(k=5))


def test_a_stopped_run_goes_on(
    run: Callable[..., Evaluation], model: RetrievalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, folder, calls = run(k=5), tmp_path / "kept", []
    monkeypatch.setattr(retrieval_protocol, "PHOTO_BATCH", 4)

    def stopping(start: int, stop: int) -> list[np.ndarray | None]:
        calls.append(start)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(start, stop)

    with pytest.raises(KeyboardInterrupt):
        run(folder, k=5, read=stopping)
    calls.clear()
    real, matched = RetrievalModel.match, []

    def match(self: RetrievalModel, *given: object) -> np.ndarray:
        if len(matched) == 7:
            raise KeyboardInterrupt
        matched.append(given)
        return real(self, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalModel, "match", match)
        with pytest.raises(KeyboardInterrupt):
            run(folder, k=5, read=stopping)
    assert calls == [8], "the first eight pictures were done"
    result = run(folder, k=5, read=lambda *_: pytest.fail("nothing is read again"))
    same(result, want)
    assert 0 < result.report.num_kept < result.report.num_pairs
    again = run(folder, k=5, read=lambda *_: pytest.fail("nothing is read again"))
    same(again, want)
    assert again.report.num_kept == again.report.num_pairs


def test_pictures_that_cannot_be_read(run: Callable[..., Evaluation]) -> None:
    def some(start: int, stop: int) -> list[np.ndarray | None]:
        return [None if number in (3, 7) else PICTURES[number] for number in range(start, stop)]

    with pytest.raises(UnreadablePicturesError, match="2 of 12 pictures could not be read") as caught:
        run(read=some)
    assert caught.value.numbers == [3, 7]
    result = run(read=some, allow_missing=True, k=4)
    kept = [number for number in range(12) if number not in (3, 7)]
    assert result.readable_numbers == kept and result.report.num_missing == 2
    alone = run(
        read=lambda start, stop: [PICTURES[number] for number in kept[start:stop]],
        captions=[CAPTIONS[number] for number in kept],
        k=4,
    )
    assert alone.report.num_missing == 0
    same(result, alone)
    with pytest.raises(DataError, match="None of the 12 pictures"):
        run(read=lambda start, stop: [None] * (stop - start), allow_missing=True)


def test_bad_input_is_named(run: Callable[..., Evaluation]) -> None:
    with pytest.raises(DataError, match="2 of 12 pictures have no captions"):
        run(captions=[[], *CAPTIONS[1:11], []])
    with pytest.raises(DataError, match="no pictures"):
        run(captions=[])
    with pytest.raises(DataError, match=r"0 MiB of memory are too little .* at least --memory 1M"):
        run(memory=1000)


def test_another_shape_is_made_anew(
    model: RetrievalModel, tmp_path: Path, run: Callable[..., Evaluation]
) -> None:
    """A file cut short by a full disk is not read as if it were whole."""
    run(tmp_path / "kept", k=3)
    folder = EvaluationCache(tmp_path / "kept", model).folder
    (folder / "photos.bin").write_bytes(b"")
    same(run(tmp_path / "kept", k=3), run(k=3))
