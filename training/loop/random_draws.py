"""Seed all random numbers of a training step by (seed, step), so that a resumed run draws them again."""

from __future__ import annotations

import torch
from torch import Tensor


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch's global generator for a step; every process (`rank`) gets other numbers, such as those of dropout."""
    torch.manual_seed((((rank << 16) + seed) << 32) + step)


def shared_draws(seed: int, step: int) -> torch.Generator:
    """Return a generator that is equal in all processes, for what they must draw alike: samples and negatives."""
    return torch.Generator().manual_seed((1 << 62) + (seed << 32) + step)


def draw_random_share(count: int, share: float, draws: torch.Generator) -> Tensor:
    """Draw a share of the numbers 0 to count - 1, at least one number -> int64, in random order."""
    return torch.randperm(count, generator=draws)[: max(1, round(share * count))]
