"""Load the pretrained image encoder that a distillation learns from, in the layout of its student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from engine.blip2.config import VisionConfig
from engine.blip2.vision import VisionEncoder
from engine.errors import DataError

TEACHER = "mobilenet_v2.npz"


def load_teacher(vision: VisionConfig, folder: Path) -> VisionEncoder:
    """The teacher in the student's layout, from `mobilenet_v2.npz`: convN.weight, convN.bias in network order, batch
    norms folded in (so that only their activations stay). Raises DataError when it is not there or does not fit."""
    path = folder / TEACHER
    if not path.is_file():
        raise DataError(f"No teacher at {path}; give its folder with --teacher.")
    encoder = VisionEncoder(vision).eval().requires_grad_(False)
    convs = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    with np.load(path) as as_stored:
        for number, conv in enumerate(convs):
            weight = torch.from_numpy(as_stored[f"conv{number}.weight"]).float()
            if weight.shape != conv.weight.shape:
                raise DataError(
                    f"{path}: conv{number} is {tuple(weight.shape)}, "
                    f"{vision.timm_name} wants {tuple(conv.weight.shape)}."
                )
            conv.weight.copy_(weight)
            conv.bias = nn.Parameter(
                torch.from_numpy(as_stored[f"conv{number}.bias"]).float(), requires_grad=False
            )
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, child.act)
    return encoder.to(memory_format=torch.channels_last)
