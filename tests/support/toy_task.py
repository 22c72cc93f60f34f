"""A task of one linear layer that the training loop can run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.loop.optimizer import OptimConfig

CONFIG = OptimConfig(steps=12, batch=4, lr=0.05, warmup=3, log_every=1, seed=7)


class ToyTask:
    """A training task that learns the sum of six random numbers; numbers and dropout come from the step's seed."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.LayerNorm(8), nn.Linear(8, 1))

    def losses(self, step: int) -> dict[str, Tensor]:
        """Compute the loss of a step."""
        x = torch.randn(4, 6).to(next(self.model.parameters()).dtype)
        return {"loss": (self.model(x)[:, 0] - x.sum(1)).square().mean().float()}
