"""Recall@k of a captioned set, both directions, before and after reranking.

TR: photo -> its captions, IR: caption -> its photo (the field's words; LAVIS says txt_r and img_r). Percent. Equal
scores are ordered by number, lower first, so that a report repeats exactly.

Shapes: N photos, M captions, K candidates, P patches, V vision width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.blip2.model import BEHIND, PHOTOS_AT_ONCE, Model
from engine.blip2.retriever import itc_scores
from engine.errors import DataError

KS = (1, 5, 10)
TEXTS_A_BLOCK = 1024


@dataclass(frozen=True)
class RecallReport:
    """before, after: percent by "TR@1" ... "IR@10"; k: candidates reranked in each direction (0: `after` is empty).

    num_pairs: photo and caption pairs that ITM read. seconds: wall time by phase.
    """

    num_photos: int
    num_captions: int
    k: int
    num_pairs: int
    before: dict[str, float]
    after: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)


def recall(scores_NM: np.ndarray, photo_of_caption_M: np.ndarray) -> dict[str, float]:
    """Recall@1, 5, 10 in percent of a score matrix (higher is better), and their means.

    photo_of_caption: the row of each caption's photo. TR@k: share of photos with one of their own captions among
    their k best; IR@k: share of captions whose photo is among their k best.
    """
    own = scores_NM[photo_of_caption_M, np.arange(len(photo_of_caption_M))]
    photo_ranks = _ranks(scores_NM.T, own, photo_of_caption_M)
    best_own = np.full(len(scores_NM), np.iinfo(np.int64).max)
    caption_ranks = _ranks_of_columns(scores_NM, photo_of_caption_M)
    np.minimum.at(best_own, photo_of_caption_M, caption_ranks)
    found = {f"TR@{k}": 100 * float((best_own < k).mean()) for k in KS}
    found |= {f"IR@{k}": 100 * float((photo_ranks < k).mean()) for k in KS}
    found["TR mean"] = float(np.mean([found[f"TR@{k}"] for k in KS]))
    found["IR mean"] = float(np.mean([found[f"IR@{k}"] for k in KS]))
    found["R mean"] = (found["TR mean"] + found["IR mean"]) / 2
    return found


def _ranks(scores_MN: np.ndarray, own_M: np.ndarray, place_M: np.ndarray) -> np.ndarray:
    """From 0: how many entries of each row come before its own one at column `place`."""
    better = (scores_MN > own_M[:, None]).sum(axis=1)
    columns = np.arange(scores_MN.shape[1])
    return better + ((scores_MN == own_M[:, None]) & (columns < place_M[:, None])).sum(axis=1)


def _ranks_of_columns(scores_NM: np.ndarray, row_M: np.ndarray) -> np.ndarray:
    """From 0: the rank of each column m within the row `row_M[m]`."""
    ranks = np.empty_like(scores_NM, dtype=np.int64)
    order = np.argsort(-scores_NM, axis=1, kind="stable")
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(scores_NM.shape[1]), scores_NM.shape), axis=1)
    return ranks[row_M, np.arange(len(row_M))]


def evaluate_retrieval(
    model: Model, pictures_NHWC: np.ndarray, captions: Sequence[Sequence[str]], *, k: int = 128,
    say: Callable[[str], None] = lambda line: None,
) -> RecallReport:  # fmt: skip
    """BLIP-2's protocol: ITC over the whole set, the k best of each photo and each caption reranked by ITM + ITC.

    pictures: uint8 (N, H, W, 3) of the model's size. captions: of each picture, one or more. k: 0 = no reranking; more
    than there are is all of them. say: called with a progress line. Raises DataError: no pictures, or one without
    captions.
    """
    if len(captions) != len(pictures_NHWC):
        raise DataError(f"{len(pictures_NHWC)} pictures and captions of {len(captions)} do not go together.")
    if num_bare := sum(not texts for texts in captions):
        raise DataError(f"{num_bare} of {len(pictures_NHWC)} pictures have no captions; leave them out.")
    if not len(pictures_NHWC):
        raise DataError("There are no pictures to evaluate.")
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    patches = [
        model.encode_patches(pictures_NHWC[start : start + PHOTOS_AT_ONCE])
        for start in range(0, len(pictures_NHWC), PHOTOS_AT_ONCE)
    ]
    photos = torch.from_numpy(np.concatenate([model.encode_photos(part) for part in patches]))
    seconds["photos"] = time.perf_counter() - started
    texts = [text for group in captions for text in group]
    owner = np.repeat(np.arange(len(captions)), [len(group) for group in captions])
    vectors, _ = model.encode_texts(texts)
    seconds["texts"] = time.perf_counter() - started - seconds["photos"]
    itc = itc_scores(photos, torch.from_numpy(vectors)).numpy()
    before, after, num_pairs = recall(itc, owner), {}, 0
    if k:
        reranking = time.perf_counter()
        matched = rerank_pairs(model, torch.cat(patches), texts, candidates(itc, k), say)
        num_pairs = int(np.isfinite(matched).sum())
        # Each direction reranks its own candidates: a pair that only the other one read keeps its ITC place.
        by_text = reranked(itc, matched, candidates_of_rows(itc.T, k).T)
        by_photo = reranked(itc, matched, candidates_of_rows(itc, k))
        after = merged(recall(by_photo, owner), recall(by_text, owner))
        seconds["rerank"] = time.perf_counter() - reranking
    return RecallReport(len(photos), len(texts), k, num_pairs, before, after, seconds)


def reranked(itc_NM: np.ndarray, logits_NM: np.ndarray, chosen_NM: np.ndarray) -> np.ndarray:
    """Scores (N, M) float64: match logit + ITC of the chosen pairs, the others behind them in ITC's order.

    In float32 a cosine less `BEHIND` would keep four decimals, and equal ranks come of that.
    """
    itc = itc_NM.astype(np.float64)
    return np.where(chosen_NM, logits_NM + itc, itc - BEHIND)


def merged(of_photos: dict[str, float], of_captions: dict[str, float]) -> dict[str, float]:
    """TR from one score matrix, IR from the other."""
    chosen = {name: (of_photos if name.startswith("TR") else of_captions)[name] for name in of_photos}
    chosen["R mean"] = (chosen["TR mean"] + chosen["IR mean"]) / 2
    return chosen


def candidates_of_rows(scores_NM: np.ndarray, k: int) -> np.ndarray:
    """bool (N, M): the k best of each row, all of them when there are fewer."""
    order = np.argsort(-scores_NM, axis=1, kind="stable")[:, :k]
    chosen = np.zeros(scores_NM.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def candidates(scores_NM: np.ndarray, k: int) -> np.ndarray:
    """bool (N, M): pairs among the k best of their photo or of their caption."""
    return candidates_of_rows(scores_NM, k) | candidates_of_rows(scores_NM.T, k).T


def rerank_pairs(
    model: Model,
    patches_NPV: torch.Tensor,
    texts: Sequence[str],
    wanted_NM: np.ndarray,
    say: Callable[[str], None],
) -> np.ndarray:
    """What ITM adds to the score (N, M) for the wanted pairs, -inf elsewhere.

    In blocks of texts of like length, so that what is kept of them (see `QFormer.start_texts`) stays small; a
    photo's keys are made once a block.
    """
    logits = np.full(wanted_NM.shape, -np.inf, dtype=np.float32)
    by_length = np.argsort([len(text) for text in texts], kind="stable")
    num_pairs, num_read = int(wanted_NM.sum()), 0
    started = said = time.monotonic()
    for first in range(0, len(texts), TEXTS_A_BLOCK):
        block = by_length[first : first + TEXTS_A_BLOCK]
        start = model.start_texts([texts[column] for column in block])
        for row in range(len(wanted_NM)):
            chosen = np.flatnonzero(wanted_NM[row, block])
            if len(chosen):
                keys = model.photo_keys(patches_NPV[row : row + 1])
                pairs = model.match(keys, start[torch.from_numpy(chosen).to(model.device)])
                logits[row, block[chosen]] = model.config.match_weight * pairs[:, 1]
                num_read += len(chosen)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                left = (said - started) / max(1, num_read) * (num_pairs - num_read)
                say(f"reranked {num_read:,} of {num_pairs:,} pairs, {left:.0f} s left")
    return logits
