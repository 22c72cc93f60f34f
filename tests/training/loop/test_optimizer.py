"""The learning rate follows its schedule and decays by layer; weight decay acts on matrices only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetuning_inputs import OPTIM
from torch import nn
from toy_task import CONFIG

from engine.errors import TrainingError
from engine.models.loading import load_captioner
from training.loop.optimizer import OptimConfig, learning_rate, learning_rate_scales, make_optimizer


def test_layer_decay_of_a_captioner(data: Path) -> None:
    """Blocks get less the deeper they lie, all else the whole rate; the language model is not trained at all."""
    net = load_captioner(str(data / "opt"), device="cpu", dtype="float32").net
    net.requires_grad_(True).language.requires_grad_(False)
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert not any(name.startswith("language.") for name in names)
    scales = dict(zip(names, learning_rate_scales(names, 0.9), strict=True))
    depth = len(net.vision.backbone.blocks)
    assert scales[f"vision.backbone.blocks.{depth - 1}.norm1.weight"] == pytest.approx(0.9)
    assert scales["vision.backbone.blocks.0.norm1.weight"] == pytest.approx(0.9**depth)
    assert scales["vision.backbone.pos_embed"] == pytest.approx(0.9 ** (depth + 1))
    assert all(scale == 1.0 for name, scale in scales.items() if not name.startswith("vision."))
    groups = make_optimizer(
        [p for p in net.parameters() if p.requires_grad], OPTIM, list(scales.values())
    ).param_groups
    assert {round(group["scale"], 6) for group in groups} == {round(s, 6) for s in scales.values()}


def test_the_schedule_rises_linearly_and_falls_by_a_cosine() -> None:
    config = OptimConfig(steps=10, batch=1, lr=1.0, min_lr=0.2, warmup=4)
    rates = [learning_rate(step, config) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    # Half of the cosine lies behind.
    assert rates[7] == pytest.approx(0.6)
    assert learning_rate(10, config) == pytest.approx(0.2)


def test_no_decay_on_vectors_and_scalars() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    model.register_parameter("temperature", nn.Parameter(torch.tensor(0.07)))
    optimizer = make_optimizer(list(model.parameters()), CONFIG)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {id(p): (0.05 if p.ndim == 2 else 0.0) for p in model.parameters()}


def test_layer_decay_lowers_the_rates_of_the_first_layers() -> None:
    names = [
        "vision.backbone.patch_embed.proj.weight",
        "vision.backbone.pos_embed",
        "vision.backbone.blocks.0.attn.qkv.weight",
        "vision.backbone.blocks.2.mlp.fc1.bias",
        "vision.backbone.norm.weight",
        "vision_norm.weight",
        "qformer.queries",
    ]
    scales = learning_rate_scales(names, 0.5)
    assert scales == [0.5**4, 0.5**4, 0.5**3, 0.5, 0.5, 1.0, 1.0]
    assert learning_rate_scales(names[-2:], 0.5) == [1.0, 1.0]  # a frozen encoder
    with pytest.raises(TrainingError, match="no blocks"):
        learning_rate_scales(["vision.backbone.conv.weight"], 0.5)


def test_scaled_learning_rates_move_weights_less(tmp_path: Path) -> None:
    """Adam's first step moves every weight by its learning rate."""
    weights = [nn.Parameter(torch.zeros(2, 2)) for _ in range(2)]
    optimizer = make_optimizer(weights, CONFIG, [1.0, 0.25])
    for group in optimizer.param_groups:
        group["lr"] *= group["scale"]
    for weight in weights:
        weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert float(weights[0][0, 0]) == pytest.approx(4 * float(weights[1][0, 0]), rel=1e-4)
