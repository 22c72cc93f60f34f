"""The protocol gives the results of brute force over single pairs: in blocks, on two devices, stopped and continued."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny import SIDE, tiny_model

from engine.errors import DataError
from engine.evaluation import retrieval_protocol
from engine.evaluation.memory_budget import MemoryBudget
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
    """Compute ITC and match logit of every pair, one by one -> two arrays (photos, captions)."""
    assert PICTURES.shape == (12, SIDE, SIDE, 3)
    itc, itm = np.zeros((12, len(TEXTS))), np.zeros((12, len(TEXTS)))
    for row, picture in enumerate(PICTURES):
        patches = model.encode_patches(picture[None])
        for column, text in enumerate(TEXTS):
            itc[row, column] = (model.encode_photos(patches)[0] @ model.encode_texts([text])[0][0]).max()
            itm[row, column] = model.match(model.compute_photo_keys(patches), [text])[0, 1]
    return itc, itm


def read_pictures(start: int, stop: int) -> list[np.ndarray | None]:
    return list(PICTURES[start:stop])


@pytest.fixture
def run(model: RetrievalModel, tmp_path: Path) -> Callable[..., Evaluation]:
    """Return a function that evaluates, each time with a new cache unless a folder is given."""
    count = iter(range(100))

    def evaluate(
        folder: Path | None = None, models: Sequence[RetrievalModel] = (model,), **options
    ) -> Evaluation:
        cache = EvaluationCache(folder or tmp_path / str(next(count)), model)
        options = {"read_pictures": read_pictures, "captions": CAPTIONS, "memory": MEMORY} | options
        return evaluate_retrieval(models, cache=cache, **options)

    return evaluate


def assert_same_evaluation(first: Evaluation, second: Evaluation) -> None:
    assert first.report.before == second.report.before and first.report.after == second.report.after
    assert first.by_k == second.by_k and first.report.num_pairs == second.report.num_pairs
    for ranks, expected in ((first.before, second.before), (first.after, second.after)):
        for name in ("tr", "ir", "best_captions", "best_photos"):
            assert np.array_equal(getattr(ranks, name), getattr(expected, name)), name


@pytest.mark.parametrize("k", [0, 2, 5, 100])
def test_recall_and_best_answers_equal_those_of_brute_force(
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
    for rank in (1, 5, 10):
        assert report.after[f"TR@{rank}"] == pytest.approx(100 * (tr < rank).mean())
        assert report.after[f"IR@{rank}"] == pytest.approx(100 * (ir < rank).mean())
    pairs = {(n, m) for n in range(12) for m in select_best_columns(itc, k)[n].tolist()}
    pairs |= {(n, m) for m in range(18) for n in select_best_columns(itc.T, k)[m].tolist()}
    assert report.num_pairs == len(pairs)


def test_recall_by_k_is_the_recall_of_a_run_with_that_k(run: Callable[..., Evaluation]) -> None:
    whole = run(k=6)
    assert sorted(whole.by_k) == [1, 2, 4, 6]
    for k in (1, 2, 4):
        assert whole.by_k[k] == run(k=k).report.after
    assert whole.by_k[6] == whole.report.after


def test_pairs_are_collected_once() -> None:
    captions_of_photos, photos_of_captions = np.array([[0, 1], [2, 1]]), np.array([[0], [1], [1]])
    pairs = collect_pairs(captions_of_photos, photos_of_captions)
    assert pairs.tolist() == [0 * 3 + 0, 0 * 3 + 1, 1 * 3 + 1, 1 * 3 + 2]


def test_small_blocks_change_nothing(run: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(k=5)
    small = MemoryBudget(score_rows=5, texts=4)
    monkeypatch.setattr(retrieval_protocol, "split_memory", lambda *_: small)
    monkeypatch.setattr(retrieval_protocol, "PHOTO_BATCH", 5)
    assert_same_evaluation(run(k=5), expected)


def test_two_devices_share_the_work(
    run: Callable[..., Evaluation], model: RetrievalModel, tmp_path: Path
) -> None:
    other = tiny_model(tmp_path / "other")
    assert other.digest == model.digest
    assert_same_evaluation(run(k=5, models=(model, other)), run(k=5))


def test_a_stopped_run_continues(
    run: Callable[..., Evaluation], model: RetrievalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, folder, starts = run(k=5), tmp_path / "cache", []
    monkeypatch.setattr(retrieval_protocol, "PHOTO_BATCH", 4)

    def read_and_stop(start: int, stop: int) -> list[np.ndarray | None]:
        starts.append(start)
        if len(starts) == 3:
            raise KeyboardInterrupt
        return read_pictures(start, stop)

    with pytest.raises(KeyboardInterrupt):
        run(folder, k=5, read_pictures=read_and_stop)
    starts.clear()
    original_match, calls = RetrievalModel.match, []

    def match_and_stop(self: RetrievalModel, *arguments: object) -> np.ndarray:
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(arguments)
        return original_match(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalModel, "match", match_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, k=5, read_pictures=read_and_stop)
    assert starts == [8], "the first eight pictures were done"
    result = run(folder, k=5, read_pictures=lambda *_: pytest.fail("nothing is read again"))
    assert_same_evaluation(result, expected)
    assert 0 < result.report.num_kept < result.report.num_pairs
    again = run(folder, k=5, read_pictures=lambda *_: pytest.fail("nothing is read again"))
    assert_same_evaluation(again, expected)
    assert again.report.num_kept == again.report.num_pairs


def test_unreadable_pictures_are_refused_or_left_out(run: Callable[..., Evaluation]) -> None:
    def read_most(start: int, stop: int) -> list[np.ndarray | None]:
        return [None if number in (3, 7) else PICTURES[number] for number in range(start, stop)]

    with pytest.raises(UnreadablePicturesError, match="2 of 12 pictures could not be read") as caught:
        run(read_pictures=read_most)
    assert caught.value.numbers == [3, 7]
    result = run(read_pictures=read_most, allow_missing=True, k=4)
    readable = [number for number in range(12) if number not in (3, 7)]
    assert result.readable_numbers == readable and result.report.num_missing == 2
    alone = run(
        read_pictures=lambda start, stop: [PICTURES[number] for number in readable[start:stop]],
        captions=[CAPTIONS[number] for number in readable],
        k=4,
    )
    assert alone.report.num_missing == 0
    assert_same_evaluation(result, alone)
    with pytest.raises(DataError, match="None of the 12 pictures"):
        run(read_pictures=lambda start, stop: [None] * (stop - start), allow_missing=True)


def test_unusable_sets_and_too_little_memory_are_refused(run: Callable[..., Evaluation]) -> None:
    with pytest.raises(DataError, match="2 of 12 pictures have no captions"):
        run(captions=[[], *CAPTIONS[1:11], []])
    with pytest.raises(DataError, match="no pictures"):
        run(captions=[])
    with pytest.raises(DataError, match=r"0 MiB of memory are too little .* at least --memory 1M"):
        run(memory=1000)


def test_a_file_that_was_cut_is_made_anew(
    model: RetrievalModel, tmp_path: Path, run: Callable[..., Evaluation]
) -> None:
    """A full disk cuts a file short; such a file is not read as if it were whole."""
    run(tmp_path / "cache", k=3)
    folder = EvaluationCache(tmp_path / "cache", model).folder
    (folder / "photos.bin").write_bytes(b"")
    assert_same_evaluation(run(tmp_path / "cache", k=3), run(k=3))
