"""BLIP-2's retrieval protocol over a captioned set: ITC both ways, the k best of each direction reranked by ITM + ITC.

Three phases, each kept on disk as it goes (`EvaluationCache`), so that a run that was stopped goes on: photos to
patches and vectors, captions to vectors, pairs to match logits. Memory stays within a budget whatever the size of
the set: itc_ranking.py makes scores in blocks, patches are mapped from disk, pair_matching.py begins captions in blocks
of like length.

Shapes: N photos, M captions, K candidates, Q queries, E embedding.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np

from engine.errors import DataError
from engine.evaluation.itc_ranking import Candidates, ItcRanking, rank_by_itc
from engine.evaluation.pair_matching import PairMatcher
from engine.evaluation.recall import (
    SHOWN,
    Evaluation,
    Ranks,
    RecallReport,
    collect_pairs,
    compute_recall,
    update_ranks,
)
from engine.evaluation.retrieval_cache import EvaluationCache
from engine.models.retrieval_model import PHOTO_BATCH, RetrievalModel
from engine.progress import Pace, Progress
from engine.types import RERANKED

SWEEP = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LEAST_TEXTS = 64
"""Smallest number of captions begun together; with fewer, the keys of every photo would be computed too often."""

Read = Callable[[int, int], list[np.ndarray | None]]
"""(start, stop) -> that range's pictures, uint8 (H, W, 3) of the model's size, None for one that cannot be read."""
ShowProgress = Callable[[str], AbstractContextManager[Callable[[Progress], None] | None]]
"""What a phase counts, "photo" or "pair" -> a block in which its progress is shown, and what is called with it."""


@contextmanager
def hide_progress(noun: str) -> Iterator[None]:
    """Show no progress of any phase; see `ShowProgress`."""
    yield None


class UnreadablePicturesError(DataError):
    """Pictures that could not be read. numbers: which, from 0."""

    def __init__(self, numbers: list[int], total: int):
        self.numbers = numbers
        super().__init__(f"{len(numbers)} of {total} pictures could not be read.")


@dataclass(frozen=True)
class EncodedSet:
    """The pictures of a set that could be read, and their captions.

    numbers: of these N pictures in the set. captions: theirs, M texts. owner_M: the row of each caption's photo.
    photos_NQE, captions_ME: unit vectors, float32.
    """

    numbers: list[int]
    captions: list[str]
    owner_M: np.ndarray
    photos_NQE: np.ndarray
    captions_ME: np.ndarray


@dataclass(frozen=True)
class Reranking:
    """The candidates of both directions with their scores by ITM + ITC, in the order of ITC.

    captions: of each photo; by_photo_NK: their scores, float64. photos: of each caption; by_text_MK: their scores.
    num_pairs: how many pairs ITM read. num_kept: how many of them an earlier run left.
    """

    captions: Candidates
    by_photo_NK: np.ndarray
    photos: Candidates
    by_text_MK: np.ndarray
    num_pairs: int
    num_kept: int


@dataclass(frozen=True)
class _Budget:
    """How much of each thing fits: rows of a score block, texts of a block of begun texts."""

    score_rows: int
    texts: int


def evaluate_retrieval(
    models: Sequence[RetrievalModel], read: Read, captions: Sequence[Sequence[str]], cache: EvaluationCache, *,
    k: int = RERANKED, memory: int = 2**31, allow_missing: bool = False, show_progress: ShowProgress = hide_progress,
) -> Evaluation:  # fmt: skip
    """Recall of both directions, before and after reranking.

    models: the same model on each device that takes part. captions: of each picture, one or more. cache: where the
    phases are kept; made for this model and this data. k: 0 = no reranking; more than there are is all of them.
    memory: bytes for what grows with the set. show_progress: called at the beginning of a phase. Raises DataError: no
    pictures, a picture without captions, one that cannot be read (all are named in `Unreadable`, and left out with
    `allow_missing`), too little memory.
    """
    seconds: dict[str, float] = {}
    encoded = encode_set(models, read, captions, cache, allow_missing, seconds, show_progress)
    with _timed(seconds, "retrieve"):
        budget = _split_memory(models[0], len(encoded.numbers), len(encoded.captions), memory)
        ranking = retrieve(encoded, k, budget)
    before = Ranks(
        ranking.tr_ranks_N, ranking.ir_ranks_M, ranking.captions.first(SHOWN).columns_RK,
        ranking.photos.first(SHOWN).columns_RK,
    )  # fmt: skip
    after, num_pairs, num_kept = before, 0, 0
    by_k: dict[int, dict[str, float]] = {}
    if k:
        with _timed(seconds, "rerank"):
            reranking = rerank(models, encoded, ranking, k, cache, budget, show_progress)
        after, by_k = compute_recall_by_k(before, encoded.owner_M, reranking, k)
        num_pairs, num_kept = reranking.num_pairs, reranking.num_kept
    report = RecallReport(
        len(encoded.numbers), len(encoded.captions), k, num_pairs, compute_recall(before.tr, before.ir),
        by_k.get(k, {}), seconds, num_kept, num_missing=len(captions) - len(encoded.numbers),
    )  # fmt: skip
    return Evaluation(report, before, after, by_k, encoded.numbers, encoded.captions, encoded.owner_M)


def encode_set(
    models: Sequence[RetrievalModel], read: Read, captions: Sequence[Sequence[str]], cache: EvaluationCache,
    allow_missing: bool, seconds: dict[str, float], show_progress: ShowProgress,
) -> EncodedSet:  # fmt: skip
    """Encode the pictures that can be read, and their captions; what the cache holds is not computed again.

    seconds: takes the times of "photos" and "texts". Raises DataError as `evaluate_retrieval` does.
    """
    if num_bare := sum(not texts for texts in captions):
        raise DataError(f"{num_bare} of {len(captions)} pictures have no captions; leave them out.")
    if not captions:
        raise DataError("There are no pictures to evaluate.")
    with _timed(seconds, "photos"):
        _encode_photos(models, read, len(captions), cache, show_progress)
        numbers: list[int] = np.flatnonzero(cache.find_readable()).tolist()
        if len(numbers) < len(captions) and not allow_missing:
            raise UnreadablePicturesError(np.flatnonzero(~cache.find_readable()).tolist(), len(captions))
        if not numbers:
            raise DataError(f"None of the {len(captions)} pictures could be read.")
    with _timed(seconds, "texts"):
        texts = [text for number in numbers for text in captions[number]]
        owner_M = np.repeat(np.arange(len(numbers)), [len(captions[number]) for number in numbers])
        captions_ME = cache.load_or_compute("texts", lambda: models[0].encode_texts(texts)[0])
        return EncodedSet(numbers, texts, owner_M, cache.get_vectors()[numbers], captions_ME)


def retrieve(encoded: EncodedSet, k: int, budget: _Budget) -> ItcRanking:
    """Rank both directions by ITC, and keep the k best of each row, but no fewer than a report shows."""
    return rank_by_itc(
        encoded.photos_NQE, encoded.captions_ME, encoded.owner_M, max(k, SHOWN), budget.score_rows
    )  # fmt: skip


def rerank(
    models: Sequence[RetrievalModel], encoded: EncodedSet, ranking: ItcRanking, k: int, cache: EvaluationCache,
    budget: _Budget, show_progress: ShowProgress,
) -> Reranking:  # fmt: skip
    """Let ITM read the k best of each direction, every pair once, and add up the scores."""
    captions, photos, num_texts = ranking.captions.first(k), ranking.photos.first(k), len(encoded.captions)
    pairs = collect_pairs(captions.columns_RK, photos.columns_RK)
    with show_progress("pair") as on_progress:
        matcher = PairMatcher(
            models[0], encoded.numbers, encoded.captions, pairs, cache, budget.texts, on_progress
        )  # fmt: skip
        _share(models, range(len(encoded.numbers)), matcher.match_photos)
        matcher.sync()

    def scores(photo_rows: np.ndarray, text_rows: np.ndarray, itc: np.ndarray) -> np.ndarray:
        """In float64: a float32 sum of a logit and a cosine would keep fewer decimals than tell two pairs apart."""
        return (
            matcher.logits[np.searchsorted(pairs, photo_rows * num_texts + text_rows)].astype(np.float64)
            + itc
        )

    by_photo_NK = scores(np.arange(len(encoded.numbers))[:, None], captions.columns_RK, captions.itc_RK)
    by_text_MK = scores(photos.columns_RK, np.arange(num_texts)[:, None], photos.itc_RK)
    return Reranking(captions, by_photo_NK, photos, by_text_MK, len(pairs), matcher.num_kept)


def compute_recall_by_k(
    before: Ranks, owner_M: np.ndarray, reranking: Reranking, k: int
) -> tuple[Ranks, dict[int, dict[str, float]]]:
    """Return the ranks after k candidates are reranked, and recall by their number: those of SWEEP below k, and k."""
    by_k = {}
    for count in sorted({*(count for count in SWEEP if count < k), k}):
        after = update_ranks(
            before, owner_M, reranking.captions.columns_RK[:, :count], reranking.by_photo_NK[:, :count],
            reranking.photos.columns_RK[:, :count], reranking.by_text_MK[:, :count],
        )  # fmt: skip
        by_k[count] = compute_recall(after.tr, after.ir)
    return after, by_k


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Note how many seconds the block takes under the name of its phase."""
    started = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - started


def _split_memory(model: RetrievalModel, num_photos: int, num_texts: int, memory: int) -> _Budget:
    """A quarter of the memory each for a block of scores and for the texts begun; the rest is for passes."""
    former = model.config.qformer
    row = (
        4 * 3 * former.num_queries * max(num_photos, num_texts)
    )  # cosines of all queries, and what sorting takes
    text = (former.num_queries + model.config.max_tokens) * former.width * model.dtype.itemsize
    least = 4 * max(row, LEAST_TEXTS * text)
    if memory < least:
        raise DataError(
            f"{memory / 2**20:,.0f} MiB of memory are too little for {num_photos:,} photos and {num_texts:,} captions; "
            f"give at least --memory {-(-least // 2**20)}M."
        )
    return _Budget(max(1, memory // 4 // row), min(num_texts, memory // 4 // text))


def _encode_photos(
    models: Sequence[RetrievalModel], read: Read, num_photos: int, cache: EvaluationCache,
    show_progress: ShowProgress,
) -> None:  # fmt: skip
    """Put patches and vectors of the photos that are not done yet into the cache."""
    cache.begin_photos(num_photos)
    starts = range(0, num_photos, PHOTO_BATCH)
    todo = [start for start in starts if not cache.has_photos(start, start + PHOTO_BATCH)]
    lock = threading.Lock()

    def encode(model: RetrievalModel, starts: Sequence[int]) -> None:
        for start in starts:
            pictures = read(start, min(start + PHOTO_BATCH, num_photos))
            readable_B = np.array([picture is not None for picture in pictures])
            patches = vectors = None
            if readable_B.any():
                patches = model.encode_patches(
                    np.stack([picture for picture in pictures if picture is not None])
                )
                vectors = model.encode_photos(patches)
            with lock:
                cache.put_photos(start, readable_B, patches, vectors)
                pace.step(len(pictures), int((~readable_B).sum()))

    with show_progress("photo") as on_progress:
        pace = Pace(sum(min(PHOTO_BATCH, num_photos - start) for start in todo), on_progress)
        try:
            _share(models, todo, encode)
        finally:  # a run that is stopped goes on behind what it has done
            cache.sync_photos()


def _share(
    models: Sequence[RetrievalModel], work: Sequence[int], do: Callable[[RetrievalModel, Sequence[int]], None]
) -> None:
    """Every model its part, in a thread of its own; with one model, here."""
    if len(models) == 1:
        do(models[0], work)
        return
    with ThreadPoolExecutor(len(models)) as pool:
        futures = [pool.submit(do, model, work[number :: len(models)]) for number, model in enumerate(models)]
        for future in futures:
            future.result()
