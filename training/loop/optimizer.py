"""AdamW, its schedule of learning rates, and smaller learning rates for the deeper layers of an image encoder.

The decay of learning rates by layer is that of BEiT (arXiv:2106.08254, appendix).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import TrainingError

ENCODER = "vision."
BLOCK = re.compile(r"\bblocks\.(\d+)\.")
FIRST = re.compile(r"\b(patch_embed|cls_token|pos_embed|norm_pre|conv_stem|bn1)\b")


def learning_rate_scales(names: Sequence[str], decay: float) -> list[float]:
    """What each weight's learning rate is multiplied by: 1 outside of the encoder, and in it less the deeper it lies.

    As LAVIS does for BLIP-2: the last of L blocks decay, the one before it decay^2, the patch embedding decay^(L+1).
    names: parameter names of the model. Raises TrainingError when decay is not 1 and the encoder has no blocks.
    """
    blocks = [int(found[1]) for name in names if name.startswith(ENCODER) and (found := BLOCK.search(name))]
    if decay == 1.0 or not any(name.startswith(ENCODER) for name in names):
        return [1.0] * len(names)
    if not blocks:
        raise TrainingError(f"layer_decay is {decay}, but the encoder has no blocks to count; set it to 1.")
    depth = 1 + max(blocks)

    def scale(name: str) -> float:
        if not name.startswith(ENCODER):
            return 1.0
        if found := BLOCK.search(name):
            return decay ** (depth - int(found[1]))
        return decay ** (depth + 1) if FIRST.search(name) else decay

    return [scale(name) for name in names]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule. lr: peak; falls by a cosine to min_lr after `warmup` steps of linear rise.

    steps: optimizer steps in all. batch: samples a step. clip: largest gradient norm, 0 = none. Weight decay acts
    on matrices only (BLIP-2, section 3.4 leaves it open; LAVIS and BERT do the same). layer_decay: see
    `learning_rate_scales`. dtype: "float32", "bfloat16" or "auto", see `run_dtype.py`. parallel: how several processes
    share the work, "ddp" (each holds the network) or "fsdp" (each holds a part of it). tensorboard: whether the log is
    written for it too.
    """

    steps: int
    batch: int
    lr: float
    min_lr: float = 0.0
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 0.0
    seed: int = 0
    dtype: str = "float32"
    checkpoint_minutes: float = 5.0
    log_every: int = 50
    layer_decay: float = 1.0
    parallel: str = "ddp"
    tensorboard: bool = False


def learning_rate(step: int, config: OptimConfig) -> float:
    """Linear warm-up, then cosine, both per step; step counts from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(
    weights: Sequence[Tensor], config: OptimConfig, scales: Sequence[float] | None = None
) -> torch.optim.AdamW:
    """AdamW without weight decay on 1-D parameters (norms, biases) and scalars.

    scales: what each weight's learning rate is multiplied by, 1 when not given; a group carries its own as "scale".
    """
    groups: dict[tuple[float, bool, type], list[Tensor]] = {}
    for weight, scale in zip(weights, scales or [1.0] * len(weights), strict=True):
        kind = type(weight.detach())  # sharded and whole weights cannot share a group
        groups.setdefault((scale, weight.ndim >= 2, kind), []).append(weight)
    described = [
        {"params": some, "weight_decay": config.weight_decay * decays, "scale": scale}
        for (scale, decays, _), some in groups.items()
    ]
    return torch.optim.AdamW(described, lr=config.lr, betas=config.betas, fused=True)
