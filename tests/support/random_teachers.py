"""Teachers of a distillation: with random weights, and the original one where it lies on this machine."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import SHARED

from engine.blip2.config import mini
from engine.blip2.vision import VisionEncoder

TEACHER = SHARED / "teacher"


def original_teacher() -> Any:
    """The teacher's own code with its weights; skips the test where it is not there."""
    if not TEACHER.is_dir():
        pytest.skip(f"no teacher: {TEACHER} is not there (set QSEEK_SHARED)")
    spec = importlib.util.spec_from_file_location("shared_teacher", TEACHER / "teacher.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["shared_teacher"] = module
    spec.loader.exec_module(module)
    return module.Teacher.load(TEACHER)


def random_teacher(folder: Path) -> Path:
    """A teacher file of the right layout with random weights, so that tests need no download."""
    torch.manual_seed(3)
    encoder = VisionEncoder(mini().vision)
    convs = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    arrays = {}
    for number, conv in enumerate(convs):
        arrays[f"conv{number}.weight"] = conv.weight.detach().numpy()
        arrays[f"conv{number}.bias"] = 0.3 * torch.randn(conv.out_channels).numpy()
    folder.mkdir(exist_ok=True)
    np.savez(folder / "mobilenet_v2.npz", **arrays)
    return folder
