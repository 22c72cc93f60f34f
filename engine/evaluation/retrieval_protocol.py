"""Evaluate a model on a captioned set by BLIP-2's retrieval protocol.

Both directions are ranked by ITC, and the k best candidates of each are reranked by ITM + ITC. There are three phases:
photos become patches and vectors, captions become vectors, pairs become match logits. Each is stored on disk as it goes
on (`EvaluationCache`), so that a run that was stopped continues. Memory stays within a budget whatever the size of the
set: itc_ranking.py computes scores in blocks, patches are mapped from disk, and pair_matching.py starts captions in
blocks of similar length.

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
from engine.evaluation.memory_budget import MemoryBudget, split_memory
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
"""Numbers of candidates for which recall after reranking is computed, those below k."""

ReadPictures = Callable[[int, int], list[np.ndarray | None]]
"""Returns the pictures from start to stop, uint8 (H, W, 3) of the model's size, None for one that cannot be read."""
ShowProgress = Callable[[str], AbstractContextManager[Callable[[Progress], None] | None]]
"""Takes the noun that a phase counts, "photo" or "pair"; returns a context that shows the progress of the phase.

The context gives the function that is called with the progress, or None."""


@contextmanager
def hide_progress(noun: str) -> Iterator[None]:
    """Show no progress of any phase; see `ShowProgress`."""
    yield None


class UnreadablePicturesError(DataError):
    """Some pictures could not be read. numbers: their numbers in the set, from 0."""

    def __init__(self, numbers: list[int], total: int):
        self.numbers = numbers
        super().__init__(f"{len(numbers)} of {total} pictures could not be read.")


@dataclass(frozen=True)
class EncodedSet:
    """The readable pictures of a set and their captions, with their vectors.

    numbers: the numbers in the set of these N pictures.
    captions: the M captions of these pictures, in their order.
    owner_M: the row of each caption's photo.
    photos_NQE, captions_ME: unit vectors, float32.
    """

    numbers: list[int]
    captions: list[str]
    owner_M: np.ndarray
    photos_NQE: np.ndarray
    captions_ME: np.ndarray


@dataclass(frozen=True)
class Reranking:
    """The candidates of both directions in the order of ITC, with their scores by ITM + ITC.

    captions: the candidates of each photo; by_photo_NK: their scores, float64.
    photos: the candidates of each caption; by_text_MK: their scores, float64.
    num_pairs: the number of pairs that ITM read.
    num_kept: how many of them an earlier run has read.
    """

    captions: Candidates
    by_photo_NK: np.ndarray
    photos: Candidates
    by_text_MK: np.ndarray
    num_pairs: int
    num_kept: int


def evaluate_retrieval(
    models: Sequence[RetrievalModel],
    read_pictures: ReadPictures,
    captions: Sequence[Sequence[str]],
    cache: EvaluationCache,
    *,
    k: int = RERANKED,
    memory: int = 2**31,
    allow_missing: bool = False,
    show_progress: ShowProgress = hide_progress,
) -> Evaluation:
    """Compute recall of both directions, before and after reranking.

    models: the same model on each device that takes part.
    captions: for each picture its captions, at least one.
    cache: stores the phases; made for this model and this set.
    k: the number of candidates that are reranked, 0 for none; all of them where there are fewer.
    memory: the number of bytes for what grows with the set.
    allow_missing: leave out pictures that cannot be read.
    Raise UnreadablePicturesError, which names all pictures that cannot be read, unless they are allowed, and DataError
    for a set without pictures, a picture without captions, no readable picture, or too little memory.
    """
    seconds: dict[str, float] = {}
    encoded = encode_set(models, read_pictures, captions, cache, allow_missing, seconds, show_progress)
    num_photos, num_captions = len(encoded.numbers), len(encoded.captions)
    with _measure_seconds(seconds, "retrieve"):
        budget = split_memory(models[0], num_photos, num_captions, memory)
        ranking = retrieve(encoded, k, budget)
    best_captions, best_photos = ranking.captions.take_first(SHOWN), ranking.photos.take_first(SHOWN)
    before = Ranks(ranking.tr_ranks_N, ranking.ir_ranks_M, best_captions.columns_RK, best_photos.columns_RK)
    after, num_pairs, num_kept = before, 0, 0
    by_k: dict[int, dict[str, float]] = {}
    if k:
        with _measure_seconds(seconds, "rerank"):
            reranking = rerank(models, encoded, ranking, k, cache, budget, show_progress)
        after, by_k = compute_recall_by_k(before, encoded.owner_M, reranking, k)
        num_pairs, num_kept = reranking.num_pairs, reranking.num_kept
    percent_before, percent_after = compute_recall(before.tr, before.ir), by_k.get(k, {})
    num_missing = len(captions) - num_photos
    report = RecallReport(
        num_photos, num_captions, k, num_pairs, percent_before, percent_after, seconds, num_kept, num_missing
    )
    return Evaluation(report, before, after, by_k, encoded.numbers, encoded.captions, encoded.owner_M)


def encode_set(
    models: Sequence[RetrievalModel],
    read_pictures: ReadPictures,
    captions: Sequence[Sequence[str]],
    cache: EvaluationCache,
    allow_missing: bool,
    seconds: dict[str, float],
    show_progress: ShowProgress,
) -> EncodedSet:
    """Encode the readable pictures and their captions; values that the cache holds are not computed again.

    seconds: the times of the phases "photos" and "texts" are added to it. Raise DataError in the cases of
    `evaluate_retrieval`.
    """
    if num_bare := sum(not texts for texts in captions):
        raise DataError(f"{num_bare} of {len(captions)} pictures have no captions; leave them out.")
    if not captions:
        raise DataError("There are no pictures to evaluate.")
    with _measure_seconds(seconds, "photos"):
        _encode_photos(models, read_pictures, len(captions), cache, show_progress)
        is_readable = cache.find_readable()
        numbers: list[int] = np.flatnonzero(is_readable).tolist()
        if len(numbers) < len(captions) and not allow_missing:
            raise UnreadablePicturesError(np.flatnonzero(~is_readable).tolist(), len(captions))
        if not numbers:
            raise DataError(f"None of the {len(captions)} pictures could be read.")
    with _measure_seconds(seconds, "texts"):
        texts = [text for number in numbers for text in captions[number]]
        owner_M = np.repeat(np.arange(len(numbers)), [len(captions[number]) for number in numbers])
        captions_ME = cache.load_or_compute("texts", lambda: models[0].encode_texts(texts)[0])
        return EncodedSet(numbers, texts, owner_M, cache.get_vectors()[numbers], captions_ME)


def retrieve(encoded: EncodedSet, k: int, budget: MemoryBudget) -> ItcRanking:
    """Rank both directions by ITC, and select the k best of each row, but no fewer than a report shows."""
    photos_NQE, captions_ME = encoded.photos_NQE, encoded.captions_ME
    return rank_by_itc(photos_NQE, captions_ME, encoded.owner_M, max(k, SHOWN), budget.score_rows)


def rerank(
    models: Sequence[RetrievalModel],
    encoded: EncodedSet,
    ranking: ItcRanking,
    k: int,
    cache: EvaluationCache,
    budget: MemoryBudget,
    show_progress: ShowProgress,
) -> Reranking:
    """Match the k best candidates of each direction by ITM, every pair once, and add the scores of ITC."""
    captions, photos = ranking.captions.take_first(k), ranking.photos.take_first(k)
    num_texts = len(encoded.captions)
    pairs = collect_pairs(captions.columns_RK, photos.columns_RK)
    with show_progress("pair") as on_progress:
        matcher = PairMatcher(
            models[0], encoded.numbers, encoded.captions, pairs, cache, budget.texts, on_progress
        )
        _share_work(models, range(len(encoded.numbers)), matcher.match_photos)
        matcher.sync()

    def add_scores(photo_rows: np.ndarray, text_rows: np.ndarray, itc: np.ndarray) -> np.ndarray:
        logits = matcher.logits[np.searchsorted(pairs, photo_rows * num_texts + text_rows)]
        # In float64: a float32 sum of a logit and a cosine has too few decimals to tell two close pairs apart.
        return logits.astype(np.float64) + itc

    by_photo_NK = add_scores(np.arange(len(encoded.numbers))[:, None], captions.columns_RK, captions.itc_RK)
    by_text_MK = add_scores(photos.columns_RK, np.arange(num_texts)[:, None], photos.itc_RK)
    return Reranking(captions, by_photo_NK, photos, by_text_MK, len(pairs), matcher.num_kept)


def compute_recall_by_k(
    before: Ranks, owner_M: np.ndarray, reranking: Reranking, k: int
) -> tuple[Ranks, dict[int, dict[str, float]]]:
    """Return the ranks after k candidates are reranked, and recall by the number of candidates.

    The numbers are those of SWEEP below k, and k itself.
    """
    by_k = {}
    captions_NK, photos_MK = reranking.captions.columns_RK, reranking.photos.columns_RK
    for count in sorted({*(count for count in SWEEP if count < k), k}):
        after = update_ranks(
            before,
            owner_M,
            captions_NK[:, :count],
            reranking.by_photo_NK[:, :count],
            photos_MK[:, :count],
            reranking.by_text_MK[:, :count],
        )
        by_k[count] = compute_recall(after.tr, after.ir)
    return after, by_k


@contextmanager
def _measure_seconds(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Note under the name of a phase how many seconds the block takes."""
    started = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - started


def _encode_photos(
    models: Sequence[RetrievalModel],
    read_pictures: ReadPictures,
    num_photos: int,
    cache: EvaluationCache,
    show_progress: ShowProgress,
) -> None:
    """Put the patches and vectors of the photos that are not done yet into the cache."""
    cache.begin_photos(num_photos)
    starts = range(0, num_photos, PHOTO_BATCH)
    todo = [start for start in starts if not cache.has_photos(start, start + PHOTO_BATCH)]
    lock = threading.Lock()

    def encode(model: RetrievalModel, starts: Sequence[int]) -> None:
        for start in starts:
            pictures = read_pictures(start, min(start + PHOTO_BATCH, num_photos))
            readable_B = np.array([picture is not None for picture in pictures])
            patches = vectors = None
            if readable_B.any():
                readable = np.stack([picture for picture in pictures if picture is not None])
                patches = model.encode_patches(readable)
                vectors = model.encode_photos(patches)
            with lock:
                cache.put_photos(start, readable_B, patches, vectors)
                pace.step(len(pictures), int((~readable_B).sum()))

    with show_progress("photo") as on_progress:
        pace = Pace(sum(min(PHOTO_BATCH, num_photos - start) for start in todo), on_progress)
        try:
            _share_work(models, todo, encode)
        finally:  # A run that is stopped here continues behind the photos that it has done.
            cache.sync_photos()


def _share_work(
    models: Sequence[RetrievalModel], work: Sequence[int], do: Callable[[RetrievalModel, Sequence[int]], None]
) -> None:
    """Do a part of the work with each model in a thread of its own; with one model, do all of it in this thread."""
    if len(models) == 1:
        do(models[0], work)
        return
    with ThreadPoolExecutor(len(models)) as pool:
        futures = [pool.submit(do, model, work[number :: len(models)]) for number, model in enumerate(models)]
        for future in futures:
            future.result()
