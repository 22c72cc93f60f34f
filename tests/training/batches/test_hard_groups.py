"""Batches are filled with photos that are confused with each other, without repeats, and as the draws decide."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from eight_pairs import make_eight_pairs, stage1_config

from engine.blip2.retriever import itc_scores
from training.batches.encoded_views import EncodedViews
from training.batches.hard_groups import add_neighbours, find_neighbours


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_neighbours_are_those_with_the_largest_sum_of_both_scores() -> None:
    photos = F.normalize(torch.randn(700, 3, 8, generator=draws(0)), dim=-1)
    texts = F.normalize(torch.randn(700, 8, generator=draws(1)), dim=-1)
    actual = find_neighbours(photos, texts, 5)
    assert actual.shape == (700, 5)
    for row in (0, 499, 500, 699):
        both = itc_scores(photos[row : row + 1], texts)[0] + itc_scores(photos, texts[row : row + 1])[:, 0]
        both[row] = -9
        assert actual[row].tolist() == both.argsort(descending=True)[:5].tolist()
    assert find_neighbours(photos[:3], texts[:3], 5).shape == (3, 2)


def test_a_batch_holds_each_seed_with_neighbours_of_its_own() -> None:
    neighbours = torch.tensor([[(row + step) % 40 for step in range(1, 8)] for row in range(40)])
    seeds = torch.tensor([0, 20])
    seen = set()
    for seed in range(10):
        numbers = add_neighbours(seeds, neighbours, 8, draws(seed)).tolist()
        assert len(numbers) == len(set(numbers)) == 8 and numbers[:2] == [0, 20]
        assert all(0 < number < 8 for number in numbers[2:5]) and all(
            20 < number < 28 for number in numbers[5:]
        )
        seen |= set(numbers)
    assert len(seen) == 16
    assert (
        add_neighbours(seeds, neighbours, 8, draws(3)).tolist()
        == add_neighbours(seeds, neighbours, 8, draws(3)).tolist()
    )


def test_where_neighbours_run_out_others_fill_the_batch() -> None:
    neighbours = torch.tensor([[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]])
    for seed in range(5):
        numbers = add_neighbours(torch.tensor([0, 1]), neighbours, 6, draws(seed)).tolist()
        assert sorted(numbers) == list(range(6))


def test_batches_of_encoded_views_have_groups() -> None:
    config = stage1_config()
    _, _, patches, samples = make_eight_pairs(config)
    neighbours = torch.tensor([[row ^ 1] for row in range(8)])  # 0 and 1, 2 and 3, ...
    optim = replace(config.optim, batch=4)
    grouped = EncodedViews(patches, samples, optim, neighbours=neighbours, group=2)
    plain = EncodedViews(patches, samples, optim)
    pairs_of_steps, plain_pairs = [], []
    for step in range(20):
        numbers = set(grouped[step].picture_ids.tolist())
        pairs_of_steps.append(sum(number ^ 1 in numbers for number in numbers))
        numbers = set(plain[step].picture_ids.tolist())
        plain_pairs.append(sum(number ^ 1 in numbers for number in numbers))
        assert len(numbers) == 4 and torch.equal(grouped[step].images, grouped[step].images)
    assert min(pairs_of_steps) == 2 and sum(pairs_of_steps) > sum(plain_pairs)
