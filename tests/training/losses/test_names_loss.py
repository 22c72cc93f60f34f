"""Photos learn names from probabilities: the loss is a cross-entropy, and classes with one name are added up."""

from __future__ import annotations

import pytest
import torch

from training.losses.names_loss import merge_classes, names_loss


def test_the_loss_is_the_cross_entropy_of_scores_that_are_maxima_over_the_queries() -> None:
    photos = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])  # one photo of two queries
    names = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    scores = torch.tensor([1.0, 0.8, -0.6]) / 0.5
    probabilities = torch.tensor([[0.7, 0.2, 0.1]])
    actual = names_loss(photos, names, probabilities, torch.tensor(0.5))
    want = -(probabilities[0] * (scores - scores.exp().sum().log())).sum()
    assert actual.item() == pytest.approx(want.item(), abs=1e-6)


def test_a_temperature_near_zero_is_raised() -> None:
    photos, names = torch.ones(1, 1, 1), torch.tensor([[1.0], [-1.0]])
    at_bound = names_loss(photos, names, torch.tensor([[0.5, 0.5]]), torch.tensor(0.01))
    assert names_loss(photos, names, torch.tensor([[0.5, 0.5]]), torch.tensor(1e-9)) == at_bound == 100


def test_classes_of_one_name_are_added_up() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.5, 0.0]])
    merged = merge_classes(probabilities, torch.tensor([1, 0, 1, 2]), 3)
    torch.testing.assert_close(merged, torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0]]))
