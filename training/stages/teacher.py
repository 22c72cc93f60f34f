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
    """Load the teacher in the layout of its student from `mobilenet_v2.npz`.

    The file holds convN.weight and convN.bias in the order of the network. The batch norms are folded into them, so
    that only the activations of the batch norms stay. Raises DataError if the file is missing or does not fit.
    """
    path = folder / TEACHER
    if not path.is_file():
        raise DataError(f"There is no teacher at {path}; give its folder with --teacher.")
    encoder = VisionEncoder(vision).eval().requires_grad_(False)
    convs = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    with np.load(path) as arrays:
        for number, conv in enumerate(convs):
            weight = torch.from_numpy(arrays[f"conv{number}.weight"]).float()
            if weight.shape != conv.weight.shape:
                raise DataError(
                    f"{path}: conv{number} has the shape {tuple(weight.shape)}, but {vision.timm_name} needs "
                    f"{tuple(conv.weight.shape)}."
                )
            conv.weight.copy_(weight)
            bias = torch.from_numpy(arrays[f"conv{number}.bias"]).float()
            conv.bias = nn.Parameter(bias, requires_grad=False)
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, child.act)
    return encoder.to(memory_format=torch.channels_last)
