"""Recall@k of a captioned set in both directions: pure functions of scores and ranks, and the types that hold results.

TR: photo -> its captions, IR: caption -> its photo (the field's words; LAVIS says txt_r and img_r). Percent. Equal
scores are ordered by number, lower first, so that a report repeats exactly. Ranks count from 0.

Shapes: N photos, M captions, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SHOWN = 5


@dataclass(frozen=True)
class RecallReport:
    """before, after: percent by "TR@1" ... "IR@10"; k: candidates reranked in each direction (0: `after` is empty).

    num_pairs: photo and caption pairs that ITM reads. seconds: wall time by phase, of this run alone; num_kept: pairs
    whose logits an earlier run left. num_missing: photos left out, with their captions, since they cannot be read.
    """

    num_photos: int
    num_captions: int
    k: int
    num_pairs: int
    before: dict[str, float]
    after: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)
    num_kept: int = 0
    num_missing: int = 0


@dataclass(frozen=True)
class Ranks:
    """From 0. tr (N,): of each photo's best own caption; ir (M,): of each caption's photo. The best few of each."""

    tr: np.ndarray
    ir: np.ndarray
    best_captions: np.ndarray
    best_photos: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """after: as before when nothing was reranked. by_k: recall by the number of candidates reranked, up to k.

    readable_numbers: numbers of the pictures that could be read, in the order of the rows; captions and owner (M,) are
    of those.
    """

    report: RecallReport
    before: Ranks
    after: Ranks
    by_k: dict[int, dict[str, float]]
    readable_numbers: list[int]
    captions: list[str]
    owner: np.ndarray


def collect_pairs(best_captions_NK: np.ndarray, best_photos_MK: np.ndarray) -> np.ndarray:
    """Pairs among the candidates of their photo or of their caption, each once, as photo * M + caption, ascending."""
    num_photos, num_texts = len(best_captions_NK), len(best_photos_MK)
    of_photos = np.arange(num_photos)[:, None] * num_texts + best_captions_NK
    of_texts = best_photos_MK * num_texts + np.arange(num_texts)[:, None]
    return np.unique(np.concatenate([of_photos.ravel(), of_texts.ravel()]))


def update_ranks(
    before: Ranks, owner_M: np.ndarray, captions_NK: np.ndarray, by_photo_NK: np.ndarray, photos_MK: np.ndarray,
    by_text_MK: np.ndarray,
) -> Ranks:  # fmt: skip
    """Ranks after reranking these candidates; what is no candidate stays behind them in ITC's order."""
    ranks_NK, ranks_MK = rank_candidates(by_photo_NK, captions_NK), rank_candidates(by_text_MK, photos_MK)
    is_own = owner_M[captions_NK] == np.arange(len(captions_NK))[:, None]
    tr = np.where(is_own, ranks_NK, np.iinfo(np.int64).max).min(axis=1)
    tr = np.where(is_own.any(axis=1), tr, before.tr)
    is_photo = photos_MK == owner_M[:, None]
    ir = np.where(is_photo.any(axis=1), (is_photo * ranks_MK).sum(axis=1), before.ir)
    return Ranks(tr, ir, _first(captions_NK, ranks_NK), _first(photos_MK, ranks_MK))


def _first(candidates_RK: np.ndarray, ranks_RK: np.ndarray) -> np.ndarray:
    return np.take_along_axis(candidates_RK, np.argsort(ranks_RK, axis=1)[:, :SHOWN], axis=1)


KS = (1, 5, 10)


def recall(scores_NM: np.ndarray, photo_of_caption_M: np.ndarray) -> dict[str, float]:
    """Recall@1, 5, 10 in percent of a score matrix (higher is better), and their means.

    photo_of_caption: the row of each caption's photo. TR@k: share of photos with one of their own captions among
    their k best; IR@k: share of captions whose photo is among their k best. BLIP-2, section 4.4, table 5.
    """
    captions_M = np.arange(len(photo_of_caption_M))
    ir_ranks = rank_columns(scores_NM.T, photo_of_caption_M)
    own_ranks = rank_columns(scores_NM[photo_of_caption_M], captions_M)
    return compute_recall(lowest_rank_by_photo(own_ranks, photo_of_caption_M, len(scores_NM)), ir_ranks)


def compute_recall(tr_ranks_N: np.ndarray, ir_ranks_M: np.ndarray) -> dict[str, float]:
    """Recall@1, 5, 10 and means from the rank of each photo's best own caption and of each caption's photo."""
    found = {f"TR@{k}": 100 * float((tr_ranks_N < k).mean()) for k in KS}
    found |= {f"IR@{k}": 100 * float((ir_ranks_M < k).mean()) for k in KS}
    found["TR mean"] = float(np.mean([found[f"TR@{k}"] for k in KS]))
    found["IR mean"] = float(np.mean([found[f"IR@{k}"] for k in KS]))
    found["R mean"] = (found["TR mean"] + found["IR mean"]) / 2
    return found


def rank_columns(scores_RC: np.ndarray, column_R: np.ndarray) -> np.ndarray:
    """The rank of one column of each row within its row: how many come before it."""
    own_R1 = np.take_along_axis(scores_RC, column_R[:, None], axis=1)
    earlier = np.arange(scores_RC.shape[1]) < column_R[:, None]
    return (scores_RC > own_R1).sum(axis=1) + ((scores_RC == own_R1) & earlier).sum(axis=1)


def lowest_rank_by_photo(
    own_ranks_M: np.ndarray, photo_of_caption_M: np.ndarray, num_photos: int
) -> np.ndarray:
    """From the rank of each caption for its photo to the lowest of each photo (N,)."""
    best = np.full(num_photos, np.iinfo(np.int64).max)
    np.minimum.at(best, photo_of_caption_M, own_ranks_M)
    return best


def select_best_columns(scores_RC: np.ndarray, k: int) -> np.ndarray:
    """The columns of the k best of each row, best first (R, min(k, C)); equal ones by number."""
    return np.argsort(-scores_RC, axis=1, kind="stable")[:, :k]


def rank_candidates(scores_RK: np.ndarray, candidates_RK: np.ndarray) -> np.ndarray:
    """The rank of each candidate after reranking (R, K): by score, equal ones by number, all before the others."""
    order = np.lexsort((candidates_RK, -scores_RK), axis=1)
    ranks = np.empty_like(order)
    places = np.broadcast_to(np.arange(order.shape[1]), order.shape)
    np.put_along_axis(ranks, order, places, axis=1)
    return ranks
