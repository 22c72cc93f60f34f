"""Seed everything that a training step draws by (seed, step), so that a resumed run draws the same."""

from __future__ import annotations

import torch
from torch import Tensor


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Make everything torch draws in this step a function of (seed, step), unlike in each process (dropout)."""
    torch.manual_seed((((rank << 16) + seed) << 32) + step)


def shared_draws(seed: int, step: int) -> torch.Generator:
    """Draws of a step that all processes make alike: which samples, which negatives."""
    return torch.Generator().manual_seed((1 << 62) + (seed << 32) + step)


def draw_random_share(count: int, share: float, draws: torch.Generator) -> Tensor:
    """A random share of the numbers below count, one at least."""
    return torch.randperm(count, generator=draws)[: max(1, round(share * count))]
