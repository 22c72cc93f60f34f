"""Test the encoder in stage 1: a frozen one stays as it is, and its own phase trains its last parts alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from eight_pairs import CAPTIONS, make_eight_pairs, stage1_config, write_colour_shard

from engine.blip2.config import VisionConfig
from engine.blip2.pixels import to_pixels
from engine.blip2.retriever import Retriever
from engine.checkpoints.building import load_net
from engine.checkpoints.saving import save_checkpoint
from training.batches.encoded_views import EncodedViews, encode_maps, encode_views
from training.loop.train_loop import train
from training.losses.cached_embeddings import Stage1Inputs
from training.losses.stage1_losses import apply_vision_norm, compute_itc_loss
from training.stages import stage1
from training.stages.encoder_phase import EncoderEnd, _compute_in_float32
from training.stages.stage1 import EncoderTask, run_stage1
from training.stages.stage1_config import Stage1Config
from training.stages.text_half import train_tokenizer


def test_a_frozen_encoder_stays_as_it_is() -> None:
    """Batch norms of a convolutional encoder neither take the statistics of the batch nor change their own."""
    config = stage1_config()
    vision = VisionConfig("test_resnet", 32, 64, class_token=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    net = Retriever(replace(config.model, vision=replace(vision, num_channels=count_channels("test_resnet"))))
    before = {name: value.clone() for name, value in net.vision.state_dict().items()}
    pictures = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    views_of_batch = encode_views(net, pictures, config)
    views_of_first = encode_views(net, pictures[:1], config)
    torch.testing.assert_close(views_of_batch[:1], views_of_first, atol=0.02, rtol=0.02)
    assert all(torch.equal(value, before[name]) for name, value in net.vision.state_dict().items())


def count_channels(name: str) -> int:
    """Return the width of the features of a timm model."""
    return timm.create_model(name, num_classes=0).num_features


def convolutional_config(**changes: object) -> Stage1Config:
    """Return a config with a small MobileNetV2, whose last parts may be trained."""
    vision = VisionConfig(
        "mobilenetv2_050",
        64,
        1280,
        {"pad_type": "same"},
        class_token=False,
        final_norm=True,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    config = stage1_config(encoder_from=17, **changes)
    return replace(config, model=replace(config.model, vision=vision))


def test_itc_trains_the_encoders_last_parts_alone(tmp_path: Path) -> None:
    """Training on feature maps has the loss of a pass through the whole encoder; earlier parts stay bit for bit."""
    config = convolutional_config()
    net, tokenizer, _, samples = make_eight_pairs(replace(config, model=stage1_config().model))
    torch.manual_seed(0)
    net = Retriever(config.model)
    pictures = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    maps = encode_maps(net, pictures, config, config.encoder_from)
    optim = replace(config.optim, steps=12, lr=2e-3, log_every=4)
    source = EncodedViews(maps, samples, optim)
    task = EncoderTask(net, tokenizer, source, config, optim)
    ids, mask, _ = tokenizer([texts[0] for texts in CAPTIONS])
    net.vision.eval()
    pixels = to_pixels(pictures, config.model.vision.mean, config.model.vision.std, torch.device("cpu"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = compute_itc_loss(net, apply_vision_norm(net, net.vision(pixels)), ids, mask)
        queries = torch.arange(net.config.qformer.num_queries)
        actual = task._compute_losses(
            net, Stage1Inputs(maps[:, 0], ids, mask, None, torch.rand(2, 8), 0, queries)
        )["loss"]
    torch.testing.assert_close(actual, expected, atol=2e-2, rtol=0)
    before = {name: value.clone() for name, value in net.vision.state_dict().items()}
    task = EncoderTask(net, tokenizer, source, config, optim)
    rows = train(task, optim, tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]
    last_parts = tuple(f"backbone.{name}" for name in ("blocks.6", "conv_head", "bn2"))
    for name, value in net.vision.state_dict().items():
        if name.endswith(("weight", "bias", "running_mean")):
            assert torch.equal(value, before[name]) != name.startswith(last_parts), name


def test_a_run_with_the_encoder_writes_what_it_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = convolutional_config(start="first")
    config = replace(
        config, optim=replace(config.optim, steps=1), encoder_optim=replace(config.optim, steps=3, batch=8)
    )
    tokenizer = train_tokenizer((text for group in CAPTIONS for text in group), 100)
    torch.manual_seed(0)
    net = Retriever(config.model)
    save_checkpoint(tmp_path / "runs" / "first" / "model", net, tokenizer)
    write_colour_shard(tmp_path / "s-000.tar")
    run_stage1(config, tmp_path, tmp_path / "runs", tmp_path / "out")
    actual = load_net(tmp_path / "out" / "model")[0].vision.state_dict()
    changed = {
        name
        for name, value in net.vision.half().state_dict().items()
        if not torch.equal(value.float(), actual[name].float())
    }
    assert changed and all(
        name.startswith(("backbone.blocks.6", "backbone.conv_head", "backbone.bn2")) for name in changed
    )
    first_weights = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    # A finished phase needs no feature maps.
    monkeypatch.setattr(stage1, "encode_maps", None)
    run_stage1(config, tmp_path, tmp_path / "runs", tmp_path / "out")
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == first_weights


def test_strided_depthwise_convolutions_are_computed_in_float32() -> None:
    """They give under autocast what they give without it, but only inside the context."""
    slow_convs = EncoderEnd(Retriever(convolutional_config().model).vision, 2).slow_convs
    assert len(slow_convs) > 1 and all(conv.groups > 1 < conv.stride[0] for conv in slow_convs)
    conv = slow_convs[0]
    maps = torch.randn(2, conv.in_channels, 8, 8).bfloat16()
    expected = conv(maps.float())
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), conv.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(maps).dtype == torch.bfloat16
        with _compute_in_float32(slow_convs):
            actual = conv(maps)
        assert conv(maps).dtype == torch.bfloat16 and "forward" not in vars(conv)
    (gradient,) = torch.autograd.grad(actual.square().sum(), conv.weight)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_machine_without_bfloat16_computes_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maps are stored in bfloat16 there too; parts with float32 weights can read them."""
    config = convolutional_config()
    _, tokenizer, _, samples = make_eight_pairs(replace(config, model=stage1_config().model))
    net = Retriever(config.model)
    pictures = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    choice = "training.loop.run_dtype.choose_fast_dtype"
    monkeypatch.setattr(choice, lambda device: torch.bfloat16)
    bfloat16_maps = encode_maps(net, pictures, config, config.encoder_from)
    monkeypatch.setattr(choice, lambda device: torch.float32)
    maps = encode_maps(net, pictures, config, config.encoder_from)
    cosine = torch.nn.functional.cosine_similarity(
        maps.float().flatten(), bfloat16_maps.float().flatten(), dim=0
    )
    # Seventeen random layers allow no more.
    assert cosine > 0.98 and not torch.equal(maps, bfloat16_maps)
    optim = replace(config.optim, steps=2, log_every=1)
    task = EncoderTask(net, tokenizer, EncodedViews(maps, samples, optim), config, optim)
    assert task.losses(0)["loss"].dtype == torch.float32
    assert task.end.read(maps[:, 0]).dtype == torch.float32
    assert len(train(task, optim, tmp_path)) == 2
