"""AdamW, its schedule of learning rates, and smaller learning rates for the first layers of an image encoder.

Learning rates decay by layer as in BEiT (arXiv:2106.08254, appendix).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import TrainingError

ENCODER_PREFIX = "vision."
BLOCK_NUMBER = re.compile(r"\bblocks\.(\d+)\.")
FIRST_LAYER = re.compile(r"\b(patch_embed|cls_token|pos_embed|norm_pre|conv_stem|bn1)\b")


def learning_rate_scales(names: Sequence[str], decay: float) -> list[float]:
    """Return the factor of each weight's learning rate: 1 outside of the encoder, and in it less towards its beginning.

    LAVIS does so for BLIP-2: the last of L blocks has decay, the block before it decay^2, the patch embedding
    decay^(L+1). names: parameter names of the model. Raise TrainingError when decay is not 1 and the encoder has no
    blocks.
    """
    encoder_names = [name for name in names if name.startswith(ENCODER_PREFIX)]
    blocks = [int(match[1]) for name in encoder_names if (match := BLOCK_NUMBER.search(name))]
    if decay == 1.0 or not encoder_names:
        return [1.0] * len(names)
    if not blocks:
        raise TrainingError(f"layer_decay is {decay}, but the encoder has no blocks to count; set it to 1.")
    num_blocks = 1 + max(blocks)

    def compute_scale(name: str) -> float:
        if not name.startswith(ENCODER_PREFIX):
            return 1.0
        if match := BLOCK_NUMBER.search(name):
            return decay ** (num_blocks - int(match[1]))
        return decay ** (num_blocks + 1) if FIRST_LAYER.search(name) else decay

    return [compute_scale(name) for name in names]


@dataclass(frozen=True)
class OptimConfig:
    """The settings of AdamW, of its schedule and of the run around it.

    steps: number of optimizer steps. batch: samples of a step, over all processes. lr: peak of the learning rate, which
    rises linearly over `warmup` steps and then falls by a cosine to min_lr. weight_decay: acts on matrices only
    (BLIP-2, section 3.4 leaves it open; LAVIS and BERT do so). clip: largest norm of the gradient, 0 for no limit.
    dtype: "float32", "bfloat16" or "auto", see `run_dtype.py`. checkpoint_minutes: time between checkpoints.
    log_every: steps between rows of the log. layer_decay: see `learning_rate_scales`. parallel: how several processes
    share the work, "ddp" (each holds the network) or "fsdp" (each holds a part of it). tensorboard: whether TensorBoard
    gets the log, too.
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
    """Return the learning rate of a step, counted from 0: a linear warm-up, then a cosine."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(
    weights: Sequence[Tensor], config: OptimConfig, scales: Sequence[float] | None = None
) -> torch.optim.AdamW:
    """Build AdamW, without weight decay on 1-D parameters (norms, biases) and scalars.

    scales: the factor of each weight's learning rate, by default 1. A parameter group has its factor under "scale".
    """
    groups: dict[tuple[float, bool, type], list[Tensor]] = {}
    for weight, scale in zip(weights, scales or [1.0] * len(weights), strict=True):
        # Sharded and whole weights cannot share a group.
        kind = type(weight.detach())
        groups.setdefault((scale, weight.ndim >= 2, kind), []).append(weight)
    parameter_groups = [
        {"params": group, "weight_decay": config.weight_decay * is_matrix, "scale": scale}
        for (scale, is_matrix, _), group in groups.items()
    ]
    return torch.optim.AdamW(parameter_groups, lr=config.lr, betas=config.betas, fused=True)
