"""Recall@k of a captioned set, both directions: pure functions of scores and ranks.

TR: photo -> its captions, IR: caption -> its photo (the field's words; LAVIS says txt_r and img_r). Percent. Equal
scores are ordered by number, lower first, so that a report repeats exactly. Ranks count from 0.

Shapes: N photos, M captions, K candidates.
"""

from __future__ import annotations

import numpy as np

KS = (1, 5, 10)


def recall(scores_NM: np.ndarray, photo_of_caption_M: np.ndarray) -> dict[str, float]:
    """Recall@1, 5, 10 in percent of a score matrix (higher is better), and their means.

    photo_of_caption: the row of each caption's photo. TR@k: share of photos with one of their own captions among
    their k best; IR@k: share of captions whose photo is among their k best. BLIP-2, section 4.4, table 5.
    """
    captions_M = np.arange(len(photo_of_caption_M))
    ir_ranks = ranks_of(scores_NM.T, photo_of_caption_M)
    own_ranks = ranks_of(scores_NM[photo_of_caption_M], captions_M)
    return recall_of_ranks(best_of_photo(own_ranks, photo_of_caption_M, len(scores_NM)), ir_ranks)


def recall_of_ranks(tr_ranks_N: np.ndarray, ir_ranks_M: np.ndarray) -> dict[str, float]:
    """Recall@1, 5, 10 and means from the rank of each photo's best own caption and of each caption's photo."""
    found = {f"TR@{k}": 100 * float((tr_ranks_N < k).mean()) for k in KS}
    found |= {f"IR@{k}": 100 * float((ir_ranks_M < k).mean()) for k in KS}
    found["TR mean"] = float(np.mean([found[f"TR@{k}"] for k in KS]))
    found["IR mean"] = float(np.mean([found[f"IR@{k}"] for k in KS]))
    found["R mean"] = (found["TR mean"] + found["IR mean"]) / 2
    return found


def ranks_of(scores_RC: np.ndarray, column_R: np.ndarray) -> np.ndarray:
    """The rank of one column of each row within its row: how many come before it."""
    own_R1 = np.take_along_axis(scores_RC, column_R[:, None], axis=1)
    earlier = np.arange(scores_RC.shape[1]) < column_R[:, None]
    return (scores_RC > own_R1).sum(axis=1) + ((scores_RC == own_R1) & earlier).sum(axis=1)


def best_of_photo(own_ranks_M: np.ndarray, photo_of_caption_M: np.ndarray, num_photos: int) -> np.ndarray:
    """From the rank of each caption for its photo to the lowest of each photo (N,)."""
    best = np.full(num_photos, np.iinfo(np.int64).max)
    np.minimum.at(best, photo_of_caption_M, own_ranks_M)
    return best


def candidates(scores_RC: np.ndarray, k: int) -> np.ndarray:
    """The columns of the k best of each row, best first (R, min(k, C)); equal ones by number."""
    return np.argsort(-scores_RC, axis=1, kind="stable")[:, :k]


def reranked_ranks(scores_RK: np.ndarray, candidates_RK: np.ndarray) -> np.ndarray:
    """The rank of each candidate after reranking (R, K): by score, equal ones by number, all before the others."""
    order = np.lexsort((candidates_RK, -scores_RK), axis=1)
    ranks = np.empty_like(order)
    places = np.broadcast_to(np.arange(order.shape[1]), order.shape)
    np.put_along_axis(ranks, order, places, axis=1)
    return ranks
