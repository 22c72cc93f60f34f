"""Compute recall@k of a captioned set in both directions, from scores or ranks, and hold the results.

TR is photo -> its captions, IR is caption -> its photo (the field's words; LAVIS says txt_r and img_r). Recall is in
percent. Equal scores are ordered by number, lower first, so that a report repeats exactly. Ranks count from 0.

Shapes: N photos, M captions, R rows, C columns, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SHOWN = 5
"""Number of best captions and photos that are stored for the page of errors."""
KS = (1, 5, 10)


@dataclass(frozen=True)
class RecallReport:
    """The numbers that a report of `qseek recall` prints.

    k: candidates that are reranked in each direction; 0 for none.
    num_pairs: pairs of a photo and a caption that ITM reads.
    before, after: percent by "TR@1" ... "IR@10", before and after reranking; `after` is empty when k is 0.
    seconds: wall time of this run by phase.
    num_kept: pairs whose logits an earlier run has computed.
    num_missing: photos that cannot be read and are left out, with their captions.
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
    """The ranks of the right answers in both directions, from 0, and the best answers.

    tr: (N,), for each photo the rank of the best of its own captions.
    ir: (M,), for each caption the rank of its photo.
    best_captions, best_photos: the first SHOWN captions of each photo, and photos of each caption.
    """

    tr: np.ndarray
    ir: np.ndarray
    best_captions: np.ndarray
    best_photos: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model on a captioned set.

    before, after: the ranks before and after reranking; they are equal when nothing is reranked.
    by_k: recall by the number of candidates that are reranked, up to k.
    readable_numbers: the numbers in the set of the pictures that could be read, in the order of the rows.
    captions: the captions of those pictures.
    owner: (M,), the row of each caption's photo.
    """

    report: RecallReport
    before: Ranks
    after: Ranks
    by_k: dict[int, dict[str, float]]
    readable_numbers: list[int]
    captions: list[str]
    owner: np.ndarray


def collect_pairs(best_captions_NK: np.ndarray, best_photos_MK: np.ndarray) -> np.ndarray:
    """Return the pairs in which the caption is a candidate of the photo or the photo one of the caption.

    Each pair occurs once, as photo * M + caption, in ascending order.
    """
    num_photos, num_captions = len(best_captions_NK), len(best_photos_MK)
    pairs_of_photos = np.arange(num_photos)[:, None] * num_captions + best_captions_NK
    pairs_of_captions = best_photos_MK * num_captions + np.arange(num_captions)[:, None]
    return np.unique(np.concatenate([pairs_of_photos.ravel(), pairs_of_captions.ravel()]))


def update_ranks(
    before: Ranks,
    owner_M: np.ndarray,
    captions_NK: np.ndarray,
    by_photo_NK: np.ndarray,
    photos_MK: np.ndarray,
    by_text_MK: np.ndarray,
) -> Ranks:
    """Return the ranks after the candidates are reranked; all others stay behind them in the order of ITC.

    before: the ranks by ITC.
    owner_M: the row of each caption's photo.
    captions_NK: the candidates of each photo; by_photo_NK: their new scores.
    photos_MK: the candidates of each caption; by_text_MK: their new scores.
    """
    ranks_NK, ranks_MK = rank_candidates(by_photo_NK, captions_NK), rank_candidates(by_text_MK, photos_MK)
    is_own = owner_M[captions_NK] == np.arange(len(captions_NK))[:, None]
    tr = np.where(is_own, ranks_NK, np.iinfo(np.int64).max).min(axis=1)
    tr = np.where(is_own.any(axis=1), tr, before.tr)
    is_photo = photos_MK == owner_M[:, None]
    ir = np.where(is_photo.any(axis=1), (is_photo * ranks_MK).sum(axis=1), before.ir)
    return Ranks(tr, ir, _select_first(captions_NK, ranks_NK), _select_first(photos_MK, ranks_MK))


def _select_first(candidates_RK: np.ndarray, ranks_RK: np.ndarray) -> np.ndarray:
    return np.take_along_axis(candidates_RK, np.argsort(ranks_RK, axis=1)[:, :SHOWN], axis=1)


def recall(scores_NM: np.ndarray, photo_of_caption_M: np.ndarray) -> dict[str, float]:
    """Compute recall@1, 5, 10 in percent of a score matrix (higher is better), and their means.

    photo_of_caption_M: the row of each caption's photo. TR@k is the share of photos with one of their own captions
    among their k best; IR@k is the share of captions whose photo is among their k best (BLIP-2, section 4.4, table 5).
    """
    captions_M = np.arange(len(photo_of_caption_M))
    ir_ranks = rank_columns(scores_NM.T, photo_of_caption_M)
    own_ranks = rank_columns(scores_NM[photo_of_caption_M], captions_M)
    return compute_recall(find_best_ranks(own_ranks, photo_of_caption_M, len(scores_NM)), ir_ranks)


def compute_recall(tr_ranks_N: np.ndarray, ir_ranks_M: np.ndarray) -> dict[str, float]:
    """Compute recall@1, 5, 10 in percent and their means from ranks.

    tr_ranks_N: for each photo the rank of the best of its own captions. ir_ranks_M: for each caption the rank of its
    photo.
    """
    percent = {f"TR@{k}": 100 * float((tr_ranks_N < k).mean()) for k in KS}
    percent |= {f"IR@{k}": 100 * float((ir_ranks_M < k).mean()) for k in KS}
    percent["TR mean"] = float(np.mean([percent[f"TR@{k}"] for k in KS]))
    percent["IR mean"] = float(np.mean([percent[f"IR@{k}"] for k in KS]))
    percent["R mean"] = (percent["TR mean"] + percent["IR mean"]) / 2
    return percent


def rank_columns(scores_RC: np.ndarray, column_R: np.ndarray) -> np.ndarray:
    """Return the rank of one column of each row within its row: the number of columns that come before it."""
    score_R1 = np.take_along_axis(scores_RC, column_R[:, None], axis=1)
    is_earlier = np.arange(scores_RC.shape[1]) < column_R[:, None]
    return (scores_RC > score_R1).sum(axis=1) + ((scores_RC == score_R1) & is_earlier).sum(axis=1)


def find_best_ranks(own_ranks_M: np.ndarray, photo_of_caption_M: np.ndarray, num_photos: int) -> np.ndarray:
    """Return the lowest rank among the captions of each photo (N,); own_ranks_M: each caption's rank for its photo."""
    best = np.full(num_photos, np.iinfo(np.int64).max)
    np.minimum.at(best, photo_of_caption_M, own_ranks_M)
    return best


def select_best_columns(scores_RC: np.ndarray, k: int) -> np.ndarray:
    """Select the columns of the k highest scores in each row -> (R, min(k, C)), best first, equal ones by number."""
    return np.argsort(-scores_RC, axis=1, kind="stable")[:, :k]


def rank_candidates(scores_RK: np.ndarray, candidates_RK: np.ndarray) -> np.ndarray:
    """Return the rank of each candidate within its row (R, K), by score and for equal scores by number."""
    order = np.lexsort((candidates_RK, -scores_RK), axis=1)
    ranks = np.empty_like(order)
    positions = np.broadcast_to(np.arange(order.shape[1]), order.shape)
    np.put_along_axis(ranks, order, positions, axis=1)
    return ranks
