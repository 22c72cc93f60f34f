"""Read the recordings of the original BLIP-2 code, and compute the weights and inputs that it was given.

Weights come from a formula that needs numpy alone. For a parameter called n, z is drawn from a standard normal
distribution with PCG64(crc32(n)). A `.weight` of one dimension is 1 + 0.1 z, another parameter of one dimension is
b_scale z, any other w_scale z; `temp` is 0.07. Inputs are drawn with PCG64(seed).
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.blip2.config import Blip2Config, QFormerConfig, VisionConfig
from engine.checkpoints.key_names import LAVIS, rename_tensors
from engine.checkpoints.tensors import as_stored

GOLDENS = Path(__file__).parents[1] / "golden" / "original"
# Names under which a checkpoint of LAVIS repeats a tensor -> the name that the formula takes.
ALIASES = {
    "Qformer.cls.predictions.decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.bias": "Qformer.cls.predictions.decoder.bias",
    "opt_model.lm_head.weight": "opt_model.model.decoder.embed_tokens.weight",
    "t5_model.encoder.embed_tokens.weight": "t5_model.shared.weight",
    "t5_model.decoder.embed_tokens.weight": "t5_model.shared.weight",
}


def draw_normal(seed: int, shape: Any) -> torch.Tensor:
    """Draw a float32 tensor from a standard normal distribution."""
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape)).astype("float32")
    return torch.from_numpy(values)


def draw_weight(name: str, shape: Any, w_scale: float, b_scale: float) -> torch.Tensor:
    """Draw the parameter of a name and shape by the formula above."""
    name = ALIASES.get(name, name)
    if name == "temp":
        return torch.tensor(0.07)
    z = draw_normal(zlib.crc32(name.encode()), shape)
    if len(shape) == 1:
        return 1 + np.float32(0.1) * z if name.endswith(".weight") else np.float32(b_scale) * z
    return np.float32(w_scale) * z


def load_golden(case: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read the facts and the recorded arrays of a case; a file that is missing makes the test fail."""
    with np.load(GOLDENS / f"{case}.npz") as recording:
        arrays = {name: torch.from_numpy(recording[name]) for name in recording.files}
    return json.loads((GOLDENS / f"{case}.json").read_text()), arrays


def small_config() -> Blip2Config:
    """Return the config of the small model with an EVA encoder of which cases a to f and h are recordings."""
    args = {"img_size": 56, "patch_size": 14, "embed_dim": 88, "depth": 4, "num_heads": 4}
    return Blip2Config(
        VisionConfig("eva_giant_patch14_clip_224", 56, 88, args),
        QFormerConfig(num_layers=4, width=64, num_heads=4, mlp_width=128, num_queries=8, dropout=0.0),
        max_tokens=16,
    )


def small_lavis_state(facts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the formula's weights of the small model under LAVIS' names. facts: of a case, with the two scales."""
    shapes = json.loads((GOLDENS / "small_stage1_shapes.json").read_text())
    return {
        name: draw_weight(name, shape, facts["w_scale"], facts["b_scale"])
        for name, shape in shapes.items()
        if not name.endswith("position_ids")
    }


def rename_from_lavis(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a LAVIS checkpoint under this project's names, by the converter's table."""
    theirs = {name: as_stored(tensor) for name, tensor in state.items()}
    return {name: tensor.read() for name, tensor in rename_tensors(theirs, LAVIS).items()}


def small_state(facts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the formula's weights of the small model under this project's names. facts: of a case."""
    return rename_from_lavis(small_lavis_state(facts))
