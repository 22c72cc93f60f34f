"""The random numbers of a pair come in the order in which they are asked for."""

from __future__ import annotations

import pytest
import torch

from training.batches.pair_draws import RowDraws, TorchDraws


def test_a_row_of_numbers_is_used_from_its_beginning() -> None:
    draws = RowDraws([0.99, 0.25, 0.5])
    assert (draws.draw_integer(4), draws.draw_fraction(), draws.draw_integer(3)) == (3, 0.25, 1)
    with pytest.raises(StopIteration):
        draws.draw_fraction()


def test_draws_of_torch_follow_its_seed() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        draws = TorchDraws()
        drawn.append([(draws.draw_integer(5), draws.draw_fraction()) for _ in range(50)])
    assert drawn[0] == drawn[1] and {number for number, _ in drawn[0]} == set(range(5))
    assert all(0 <= fraction < 1 for _, fraction in drawn[0])
