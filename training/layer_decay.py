"""Layer-wise decay of the learning rate for an encoder that is trained on (BEiT, arXiv:2106.08254, appendix)."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
