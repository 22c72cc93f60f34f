"""Fill batches with groups of photos that a model confuses, so that the negatives of ITC and ITM are hard ones.

Negatives of a batch that is drawn at random are easy: in 128 of 6,000 photos there is seldom a second dog that jumps
over a hurdle. A search brings many such candidates each time.

Shapes: N photos, Q queries, E embedding, K neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.blip2.retriever import itc_scores

ROWS_AT_ONCE = 500


def find_neighbours(photos_NQE: Tensor, texts_NE: Tensor, k: int) -> Tensor:
    """Return for each photo the k others that are confused with it most -> (N, k) int64, the nearest first.

    Two photos are confused by the sum of their ITC scores with each other's text. photos: unit vectors of the photos.
    texts: for each photo the mean of its captions' vectors.
    """
    scores_NN = torch.cat([itc_scores(rows, texts_NE) for rows in photos_NQE.split(ROWS_AT_ONCE)])
    both_NN = scores_NN + scores_NN.T
    both_NN.fill_diagonal_(-torch.inf)
    return both_NN.topk(min(k, len(both_NN) - 1), dim=1).indices


def add_neighbours(seeds: Tensor, neighbours_NK: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Fill a batch: return seeds and equally many of the neighbours of each, without repeats -> (count,) int64.

    Neighbours are drawn at random from those in the table. Where too few of them are left, any other photo is taken.
    """
    numbers = dict.fromkeys(seeds.tolist())
    num_photos, num_neighbours = neighbours_NK.shape
    for seed in seeds.tolist():
        order = torch.randperm(num_neighbours, generator=draws)
        candidates = [number for number in neighbours_NK[seed, order].tolist() if number not in numbers]
        numbers.update(dict.fromkeys(candidates[: count // len(seeds) - 1]))
    if len(numbers) < count:
        numbers.update(dict.fromkeys(torch.randperm(num_photos, generator=draws).tolist()))
    return torch.tensor(list(numbers)[:count])
