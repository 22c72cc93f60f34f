"""The encoder in stage 1: frozen it stays as it is, and its own phase trains its last parts alone."""

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


def test_the_frozen_encoder_stays_as_it_is() -> None:
    """Batch norms of a convolutional encoder must neither take the batch's statistics nor change their own."""
    chosen = stage1_config()
    vision = VisionConfig("test_resnet", 32, 64, class_token=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    net = Retriever(replace(chosen.model, vision=replace(vision, num_channels=_channels("test_resnet"))))
    before = {name: value.clone() for name, value in net.vision.state_dict().items()}
    pictures = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    together = encode_views(net, pictures, chosen)
    alone = encode_views(net, pictures[:1], chosen)
    torch.testing.assert_close(together[:1], alone, atol=0.02, rtol=0.02)
    assert all(torch.equal(value, before[name]) for name, value in net.vision.state_dict().items())


def _channels(name: str) -> int:
    return timm.create_model(name, num_classes=0).num_features


def convolutional(**changes: object) -> Stage1Config:
    vision = VisionConfig(
        "mobilenetv2_050", 64, 1280, {"pad_type": "same"}, class_token=False, final_norm=True, mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )  # fmt: skip
    chosen = stage1_config(encoder_from=17, **changes)
    return replace(chosen, model=replace(chosen.model, vision=vision))


def test_itc_trains_the_encoders_last_parts_alone(tmp_path: Path) -> None:
    """On feature maps made once, with the loss of a pass through all of it; what is before stays bit for bit."""
    chosen = convolutional()
    net, tokenizer, _, samples = make_eight_pairs(replace(chosen, model=stage1_config().model))
    torch.manual_seed(0)
    net = Retriever(chosen.model)
    pictures = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    maps = encode_maps(net, pictures, chosen, chosen.encoder_from)
    optim = replace(chosen.optim, steps=12, lr=2e-3, log_every=4)
    source = EncodedViews(maps, samples, optim)
    task = EncoderTask(net, tokenizer, source, chosen, optim)
    ids, mask, _ = tokenizer([texts[0] for texts in CAPTIONS])
    net.vision.eval()
    pixels = to_pixels(pictures, chosen.model.vision.mean, chosen.model.vision.std, torch.device("cpu"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = compute_itc_loss(net, apply_vision_norm(net, net.vision(pixels)), ids, mask)
        queries = torch.arange(net.config.qformer.num_queries)
        got = task._compute_losses(
            net, Stage1Inputs(maps[:, 0], ids, mask, None, torch.rand(2, 8), 0, queries)
        )["loss"]
    torch.testing.assert_close(got, want, atol=2e-2, rtol=0)
    before = {name: value.clone() for name, value in net.vision.state_dict().items()}
    task = EncoderTask(net, tokenizer, source, chosen, optim)
    rows = train(task, optim, tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]
    last = [f"backbone.{name}" for name in ("blocks.6", "conv_head", "bn2")]
    for name, value in net.vision.state_dict().items():
        if name.endswith(("weight", "bias", "running_mean")):
            assert torch.equal(value, before[name]) != name.startswith(tuple(last)), name


def test_a_run_with_the_encoder_writes_what_it_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = convolutional(start="first")
    chosen = replace(
        chosen, optim=replace(chosen.optim, steps=1), encoder_optim=replace(chosen.optim, steps=3, batch=8)
    )
    words = train_tokenizer((text for group in CAPTIONS for text in group), 100)
    torch.manual_seed(0)
    net = Retriever(chosen.model)
    save_checkpoint(tmp_path / "runs" / "first" / "model", net, words)
    write_colour_shard(tmp_path / "s-000.tar")
    run_stage1(chosen, tmp_path, tmp_path / "runs", tmp_path / "out")
    got = load_net(tmp_path / "out" / "model")[0].vision.state_dict()
    changed = {
        name
        for name, value in net.vision.half().state_dict().items()
        if not torch.equal(value.float(), got[name].float())
    }
    assert changed and all(
        name.startswith(("backbone.blocks.6", "backbone.conv_head", "backbone.bn2")) for name in changed
    )
    first = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(stage1, "encode_maps", None)  # a finished phase is not made ready again
    run_stage1(chosen, tmp_path, tmp_path / "runs", tmp_path / "out")
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == first


def test_strided_depthwise_convolutions_are_computed_in_float32() -> None:
    """Those that are slow in bfloat16 on a CPU: under autocast as without it, and only within."""
    strided = EncoderEnd(Retriever(convolutional().model).vision, 2).slow_convs
    assert len(strided) > 1 and all(conv.groups > 1 < conv.stride[0] for conv in strided)
    conv = strided[0]
    maps = torch.randn(2, conv.in_channels, 8, 8).bfloat16()
    want = conv(maps.float())
    (want_gradient,) = torch.autograd.grad(want.square().sum(), conv.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(maps).dtype == torch.bfloat16
        with _compute_in_float32(strided):
            got = conv(maps)
        assert conv(maps).dtype == torch.bfloat16 and "forward" not in vars(conv)
    (gradient,) = torch.autograd.grad(got.square().sum(), conv.weight)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient, want_gradient)


def test_without_bfloat16_hardware_it_computes_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maps are kept in bfloat16 there too; parts of float32 weights read them all the same."""
    chosen = convolutional()
    _, tokenizer, _, samples = make_eight_pairs(replace(chosen, model=stage1_config().model))
    net = Retriever(chosen.model)
    pictures = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    fast = encode_maps(net, pictures, chosen, chosen.encoder_from)
    monkeypatch.setattr("training.loop.run_dtype.choose_fast_dtype", lambda device: torch.float32)
    maps = encode_maps(net, pictures, chosen, chosen.encoder_from)
    cosine = torch.nn.functional.cosine_similarity(maps.float().flatten(), fast.float().flatten(), dim=0)
    assert cosine > 0.98 and not torch.equal(maps, fast)  # as near as seventeen random layers allow
    optim = replace(chosen.optim, steps=2, log_every=1)
    task = EncoderTask(net, tokenizer, EncodedViews(maps, samples, optim), chosen, optim)
    assert task.losses(0)["loss"].dtype == torch.float32
    assert task.end.read(maps[:, 0]).dtype == torch.float32
    assert len(train(task, optim, tmp_path)) == 2
