"""BLIP-2's retrieval protocol over a captioned set: ITC both ways, the k best of each direction reranked by ITM + ITC.

Three phases, each kept on disk as it goes (`EvaluationCache`), so that a run that was stopped goes on: photos to
patches and vectors, captions to vectors, pairs to match logits. Memory stays within a budget whatever the size of
the set: scores are made in blocks, patches are mapped from disk, texts are begun (see `QFormer.start_texts`) in
blocks of like length; a photo's keys and values are made once a block and read by all its texts there.

Shapes: N photos, M captions, K candidates, P patches, V vision width, Q queries, E embedding.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.blip2.retriever import itc_scores
from engine.errors import DataError
from engine.evaluation.recall import (
    SHOWN,
    Evaluation,
    Ranks,
    RecallReport,
    best_of_photo,
    candidates,
    ranks_after_reranking,
    ranks_of,
    recall_of_ranks,
    unique_pairs,
)
from engine.evaluation.retrieval_cache import EvaluationCache
from engine.models.retrieval_model import PHOTOS_AT_ONCE, RetrievalModel

SWEEP = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LEAST_TEXTS = 64
"""In a block of begun texts: fewer would make every photo's keys anew for a handful of texts."""
SAY_SECONDS = 10.0

Read = Callable[[int, int], list[np.ndarray | None]]
"""(start, stop) -> that range's pictures, uint8 (H, W, 3) of the model's size, None for one that cannot be read."""


@dataclass(frozen=True)
class _Budget:
    """How much of each thing fits: rows of a score block, texts of a block of begun texts."""

    score_rows: int
    texts: int


def evaluate_retrieval(
    models: Sequence[RetrievalModel], read: Read, captions: Sequence[Sequence[str]], cache: EvaluationCache, *,
    k: int = 128, memory: int = 2**31, allow_missing: bool = False, say: Callable[[str], None] = lambda line: None,
) -> Evaluation:  # fmt: skip
    """Recall of both directions, before and after reranking.

    models: the same model on each device that takes part. captions: of each picture, one or more. cache: where the
    phases are kept; made for this model and this data. k: 0 = no reranking; more than there are is all of them.
    memory: bytes for what grows with the set. say: called with a progress line. Raises DataError: no pictures, a
    picture without captions, one that cannot be read (all are named in `Unreadable`, and left out with
    `allow_missing`), too little memory.
    """
    model = models[0]
    if num_bare := sum(not texts for texts in captions):
        raise DataError(f"{num_bare} of {len(captions)} pictures have no captions; leave them out.")
    if not captions:
        raise DataError("There are no pictures to evaluate.")
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    _encode_photos(models, read, len(captions), cache, say)
    kept: list[int] = np.flatnonzero(cache.readable()).tolist()
    if len(kept) < len(captions) and not allow_missing:
        raise Unreadable(np.flatnonzero(~cache.readable()).tolist(), len(captions))
    if not kept:
        raise DataError(f"None of the {len(captions)} pictures could be read.")
    seconds["photos"] = time.perf_counter() - started

    started = time.perf_counter()
    texts = [text for number in kept for text in captions[number]]
    owner = np.repeat(np.arange(len(kept)), [len(captions[number]) for number in kept])
    vectors_ME = cache.array("texts", lambda: model.encode_texts(texts)[0])
    photos_NQE = cache.vectors()[kept]
    seconds["texts"] = time.perf_counter() - started

    started = time.perf_counter()
    budget = _budget(model, len(kept), len(texts), memory)
    tr, ir, best_captions, best_photos = _retrieve(photos_NQE, vectors_ME, owner, max(k, SHOWN), budget)
    before = Ranks(tr, ir, best_captions[0][:, :SHOWN], best_photos[0][:, :SHOWN])
    seconds["retrieve"] = time.perf_counter() - started
    found = recall_of_ranks(tr, ir)
    report = RecallReport(
        len(kept), len(texts), k, 0, found, {}, seconds, num_missing=len(captions) - len(kept)
    )
    if not k:
        return Evaluation(report, before, before, {}, kept, texts, owner)

    started = time.perf_counter()
    best_captions = best_captions[0][:, :k], best_captions[1][:, :k]
    best_photos = best_photos[0][:, :k], best_photos[1][:, :k]
    pairs = unique_pairs(best_captions[0], best_photos[0])
    logits, num_kept = _match(models, kept, texts, pairs, cache, budget, say)
    seconds["rerank"] = time.perf_counter() - started

    def scores(photos: np.ndarray, of_texts: np.ndarray, itc: np.ndarray) -> np.ndarray:
        """In float64: a float32 sum of a logit and a cosine would keep fewer decimals than tell two pairs apart."""
        return logits[np.searchsorted(pairs, photos * len(texts) + of_texts)].astype(np.float64) + itc

    photo_rows, text_rows = np.arange(len(kept))[:, None], np.arange(len(texts))[:, None]
    by_photo = scores(photo_rows, best_captions[0], best_captions[1])
    by_text = scores(best_photos[0], text_rows, best_photos[1])
    by_k = {}
    for some in sorted({*(one for one in SWEEP if one < k), k}):
        after = ranks_after_reranking(
            before, owner, best_captions[0][:, :some], by_photo[:, :some], best_photos[0][:, :some], by_text[:, :some]
        )  # fmt: skip
        by_k[some] = recall_of_ranks(after.tr, after.ir)
    report = replace(report, num_pairs=len(pairs), after=by_k[k], num_kept=num_kept)
    return Evaluation(report, before, after, by_k, kept, texts, owner)


class Unreadable(DataError):
    """Pictures that could not be read. numbers: which, from 0."""

    def __init__(self, numbers: list[int], total: int):
        self.numbers = numbers
        super().__init__(f"{len(numbers)} of {total} pictures could not be read.")


def _budget(model: RetrievalModel, num_photos: int, num_texts: int, memory: int) -> _Budget:
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
    models: Sequence[RetrievalModel],
    read: Read,
    num_photos: int,
    cache: EvaluationCache,
    say: Callable[[str], None],
) -> None:
    cache.begin_photos(num_photos)
    starts = range(0, num_photos, PHOTOS_AT_ONCE)
    todo = [start for start in starts if not cache.has_photos(start, start + PHOTOS_AT_ONCE)]
    num_done, clock, lock = 0, _Clock(say), threading.Lock()

    def encode(model: RetrievalModel, starts: Sequence[int]) -> None:
        nonlocal num_done
        for start in starts:
            stop = min(start + PHOTOS_AT_ONCE, num_photos)
            pictures = read(start, stop)
            rows = [row for row, picture in enumerate(pictures) if picture is not None]
            readable = np.zeros(stop - start, bool)
            readable[rows] = True
            patches = vectors = None
            if rows:
                patches = model.encode_patches(np.stack([pictures[row] for row in rows]))  # type: ignore[misc]
                vectors = model.encode_photos(patches)
            with lock:
                cache.put_photos(start, readable, patches, vectors)
                num_done += 1
                clock.tell(num_done, len(todo), f"{num_done * PHOTOS_AT_ONCE:,} photos encoded")

    _share(models, todo, encode)


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


Best = tuple[np.ndarray, np.ndarray]
"""Candidates of each row, best first, and their ITC."""


def _retrieve(
    photos_NQE: np.ndarray, vectors_ME: np.ndarray, owner_M: np.ndarray, k: int, budget: _Budget
) -> tuple[np.ndarray, np.ndarray, Best, Best]:
    """ITC's rank of each photo's best own caption, of each caption's photo, and the k best of each, in blocks."""
    photos, vectors = torch.from_numpy(photos_NQE), torch.from_numpy(vectors_ME)
    own_ranks = np.empty(len(vectors), np.int64)
    ir_ranks = np.empty(len(vectors), np.int64)
    captions: list[Best] = []
    for start in range(0, len(photos), budget.score_rows):
        scores_nM = itc_scores(photos[start : start + budget.score_rows], vectors).numpy()
        own = np.flatnonzero((owner_M >= start) & (owner_M < start + budget.score_rows))
        own_ranks[own] = ranks_of(scores_nM[owner_M[own] - start], own)
        captions.append(_best(scores_nM, k))
    best_photos: list[Best] = []
    for start in range(0, len(vectors), budget.score_rows):
        scores_mN = np.ascontiguousarray(
            itc_scores(photos, vectors[start : start + budget.score_rows]).numpy().T
        )
        ir_ranks[start : start + len(scores_mN)] = ranks_of(
            scores_mN, owner_M[start : start + len(scores_mN)]
        )
        best_photos.append(_best(scores_mN, k))
    tr_ranks = best_of_photo(own_ranks, owner_M, len(photos))
    return tr_ranks, ir_ranks, _joined(captions), _joined(best_photos)


def _best(scores_RC: np.ndarray, k: int) -> Best:
    columns = candidates(scores_RC, k)
    return columns, np.take_along_axis(scores_RC, columns, axis=1)


def _joined(parts: Sequence[Best]) -> Best:
    return np.concatenate([columns for columns, _ in parts]), np.concatenate([scores for _, scores in parts])


def _match(
    models: Sequence[RetrievalModel], kept: list[int], texts: Sequence[str], pairs: np.ndarray, cache: EvaluationCache,
    budget: _Budget, say: Callable[[str], None],
) -> tuple[np.ndarray, int]:  # fmt: skip
    """What ITM adds to the score of each pair (float32), and how many an earlier run left."""
    logits = cache.logits(pairs)
    num_kept = int((~np.isnan(logits)).sum())
    num_done, clock, lock = num_kept, _Clock(say), threading.Lock()
    by_length = models[0].tokenizer(texts)[1].sum(dim=1).argsort(stable=True).numpy()
    photos_P, texts_P = pairs // len(texts), pairs % len(texts)
    of_photo = np.searchsorted(photos_P, np.arange(len(kept) + 1))
    place = np.empty(len(texts), np.int64)
    place[by_length] = np.arange(len(texts))

    def match(model: RetrievalModel, rows: Sequence[int]) -> None:
        nonlocal num_done
        weight = model.config.match_weight
        for first in range(0, len(texts), budget.texts):
            block = by_length[first : first + budget.texts]
            start = None
            for row in rows:
                of_row = slice(of_photo[row], of_photo[row + 1])
                places = place[texts_P[of_row]] - first
                todo = np.flatnonzero((places >= 0) & (places < len(block)) & np.isnan(logits[of_row]))
                if not len(todo):
                    continue
                if start is None:
                    start = model.start_texts([texts[number] for number in block])
                todo = todo[np.argsort(places[todo], kind="stable")]
                keys = model.photo_keys(cache.patches(kept[row]).to(model.device))
                chosen = start[torch.from_numpy(places[todo]).to(model.device)]
                got = weight * model.match(keys, chosen)[:, 1]
                with lock:
                    logits[of_photo[row] + todo] = got
                    num_done += len(todo)
                    if clock.tell(
                        num_done - num_kept, len(pairs) - num_kept, f"{num_done:,} of {len(pairs):,} pairs"
                    ):
                        logits.flush()

    _share(models, range(len(kept)), match)
    logits.flush()
    return logits, num_kept


class _Clock:
    """A progress line now and then."""

    def __init__(self, say: Callable[[str], None]):
        self.say, self.started = say, time.monotonic()
        self.said = self.started

    def tell(self, done: int, total: int, what: str) -> bool:
        """Whether a line was due."""
        now = time.monotonic()
        if now - self.said < SAY_SECONDS:
            return False
        self.said = now
        self.say(f"{what}, {(now - self.started) / done * (total - done):.0f} s left")
        return True
