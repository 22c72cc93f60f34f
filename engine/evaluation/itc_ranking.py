"""Rank every photo and every caption of a set by ITC, the first half of the retrieval protocol.

Scores are computed in blocks of rows, so that memory stays within a budget whatever the size of the set. Ranks count
from 0.

Shapes: N photos, M captions, R rows, C columns, K candidates, Q queries, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.blip2.retriever import itc_scores
from engine.evaluation.recall import find_best_ranks, rank_columns, select_best_columns


@dataclass(frozen=True)
class Candidates:
    """The best columns of each row of a score matrix, best first.

    columns_RK: the numbers of the columns.
    itc_RK: their ITC scores, float32.
    """

    columns_RK: np.ndarray
    itc_RK: np.ndarray

    def take_first(self, count: int) -> Candidates:
        """Return the `count` best of each row, or all of them where there are fewer."""
        return Candidates(self.columns_RK[:, :count], self.itc_RK[:, :count])


@dataclass(frozen=True)
class ItcRanking:
    """The ranks and candidates of a set by ITC alone.

    tr_ranks_N: for each photo the rank of the best of its own captions.
    ir_ranks_M: for each caption the rank of its photo.
    captions: the candidates of each photo.
    photos: the candidates of each caption.
    """

    tr_ranks_N: np.ndarray
    ir_ranks_M: np.ndarray
    captions: Candidates
    photos: Candidates


def rank_by_itc(
    photos_NQE: np.ndarray, captions_ME: np.ndarray, owner_M: np.ndarray, num_candidates: int, block_rows: int
) -> ItcRanking:
    """Rank the captions of every photo and the photos of every caption, and select the best candidates of each.

    photos_NQE, captions_ME: unit vectors.
    owner_M: the row of each caption's photo.
    num_candidates: how many candidates are selected for each photo and each caption.
    block_rows: the number of rows whose scores are in memory at a time.
    """
    photos, captions = torch.from_numpy(photos_NQE), torch.from_numpy(captions_ME)
    own_ranks_M = np.empty(len(captions), np.int64)
    ir_ranks_M = np.empty(len(captions), np.int64)
    photo_blocks: list[Candidates] = []
    for start in range(0, len(photos), block_rows):
        scores_nM = itc_scores(photos[start : start + block_rows], captions).numpy()
        own_captions = np.flatnonzero((owner_M >= start) & (owner_M < start + block_rows))
        own_ranks_M[own_captions] = rank_columns(scores_nM[owner_M[own_captions] - start], own_captions)
        photo_blocks.append(_select_candidates(scores_nM, num_candidates))
    caption_blocks: list[Candidates] = []
    for start in range(0, len(captions), block_rows):
        block = slice(start, start + block_rows)
        scores_mN = np.ascontiguousarray(itc_scores(photos, captions[block]).numpy().T)
        ir_ranks_M[block] = rank_columns(scores_mN, owner_M[block])
        caption_blocks.append(_select_candidates(scores_mN, num_candidates))
    tr_ranks_N = find_best_ranks(own_ranks_M, owner_M, len(photos))
    return ItcRanking(tr_ranks_N, ir_ranks_M, _join_blocks(photo_blocks), _join_blocks(caption_blocks))


def _select_candidates(scores_RC: np.ndarray, count: int) -> Candidates:
    columns_RK = select_best_columns(scores_RC, count)
    return Candidates(columns_RK, np.take_along_axis(scores_RC, columns_RK, axis=1))


def _join_blocks(blocks: Sequence[Candidates]) -> Candidates:
    return Candidates(
        np.concatenate([block.columns_RK for block in blocks]),
        np.concatenate([block.itc_RK for block in blocks]),
    )
