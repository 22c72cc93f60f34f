"""Write teachers of a distillation whose weights come from a formula, so that no test needs a download."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from reference import draw_normal

from engine.blip2.config import mini
from engine.blip2.vision import VisionEncoder


def write_random_teacher(folder: Path, num_classes: int = 0) -> Path:
    """Write a teacher file of the right layout into a folder; return the folder.

    num_classes: if it is more than 0, the last convolution is a classifier of this many classes, and their names are
    written too. The weights are those of the recordings i_teacher and i_classifier in tests/golden/original.
    """
    encoder = VisionEncoder(mini().vision)
    convolutions = [module for module in encoder.modules() if isinstance(module, torch.nn.Conv2d)]
    shapes = [tuple(convolution.weight.shape) for convolution in convolutions]
    if num_classes:
        shapes.append((num_classes, encoder.config.num_channels, 1, 1))
    arrays = {}
    for number, shape in enumerate(shapes):
        weight, bias = f"conv{number}.weight", f"conv{number}.bias"
        scale = np.float32((2 / np.prod(shape[1:])) ** 0.5)
        arrays[weight] = (scale * draw_normal(zlib.crc32(weight.encode()), shape)).numpy()
        arrays[bias] = (np.float32(0.3) * draw_normal(zlib.crc32(bias.encode()), shape[:1])).numpy()
    folder.mkdir(exist_ok=True)
    np.savez(folder / "mobilenet_v2.npz", **arrays)
    if num_classes:
        names = ["background", "tench", *(f"class {number}" for number in range(2, num_classes))]
        (folder / "imagenet_labels.txt").write_text("\n".join(names) + "\n")
    return folder
