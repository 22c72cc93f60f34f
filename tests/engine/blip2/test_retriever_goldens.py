"""Parity with the original BLIP-2 code on its recorded outputs, fp32, both weight scales (goldens a to d, f)."""

from __future__ import annotations

from functools import cache

import golden_small
import numpy as np
import pytest
import torch
from caption_logits import caption_logits
from reference import from_lavis, load_golden, normal, small_config, small_state, weight

from engine.blip2.config import VisionConfig
from engine.blip2.itg_decoding import search_captions
from engine.blip2.retriever import Retriever, itc_scores
from engine.blip2.vision import VisionEncoder
from engine.checkpoints.position_grids import resize_positions

SCALES = pytest.mark.parametrize("scale", ["std", "strong"])


def close(got: torch.Tensor, want: torch.Tensor, atol: float = 2e-5) -> None:
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, atol=atol, rtol=0)


@cache
def small_model(scale: str) -> Retriever:
    info, _ = load_golden(f"b_itc_{scale}")
    model = Retriever(small_config()).eval().requires_grad_(False)
    model.load_state_dict(small_state(info))
    return model


@SCALES
def test_eva_encoder(scale: str) -> None:
    _, want = load_golden(f"a_eva_{scale}")
    model = small_model(scale)
    pixels = normal(101, (2, 3, 56, 56))
    features = model.vision(pixels)
    close(features, want["features"])
    close(model.vision_norm(features), want["ln_vision"])
    x = model.vision.backbone._pos_embed(model.vision.backbone.patch_embed(pixels))[0]
    for block, want_block in zip(model.vision.backbone.blocks, want["blocks"], strict=True):
        x = block(x)
        close(x, want_block)


def test_eva_positions_resized() -> None:
    _, want = load_golden("a_eva_interp_std")
    config = small_config().vision
    larger = VisionEncoder(
        VisionConfig(config.timm_name, 84, 88, {**config.timm_args, "img_size": 84})
    ).eval()
    state = small_model("std").vision.state_dict()
    state["backbone.pos_embed"] = resize_positions(state["backbone.pos_embed"], 6, align_corners=False)
    close(state["backbone.pos_embed"], want["pos_embed"])
    larger.load_state_dict(state)
    close(larger(normal(102, (1, 3, 84, 84))).detach(), want["features"])


def test_clip_encoder() -> None:
    info, want = load_golden("a_clip_std")
    state = {n: weight(n, s, info["w_scale"], info["b_scale"]) for n, s in info["shapes"].items()}
    ours = from_lavis(state)
    backbone = {k.removeprefix("vision."): v for k, v in ours.items() if k.startswith("vision.")}
    args = {"patch_size": 14, "embed_dim": 64, "depth": 3, "num_heads": 4}
    for side, seed, name in ((4, 101, "features"), (6, 102, "interp_features")):
        config = VisionConfig(
            "vit_large_patch14_clip_quickgelu_224", 14 * side, 64, {**args, "img_size": 14 * side}
        )
        encoder = VisionEncoder(config).eval().requires_grad_(False)
        positions = resize_positions(backbone["backbone.pos_embed"], side, align_corners=True)
        if side == 6:
            close(positions[0], want["interp_positional_embedding"])
        encoder.load_state_dict({**backbone, "backbone.pos_embed": positions})
        features = encoder(normal(seed, (2 if side == 4 else 1, 3, 14 * side, 14 * side)))
        close(features, want[name])
        if side == 4:
            norm = torch.nn.functional.layer_norm(
                features, (64,), ours["vision_norm.weight"], ours["vision_norm.bias"], 1e-5
            )
            close(norm, want["ln_vision"])


@SCALES
def test_itc(scale: str) -> None:
    _, want = load_golden(f"b_itc_{scale}")
    model = small_model(scale)
    keys = model.compute_photo_keys(model.encode_patches(normal(201, (4, 3, 56, 56))))
    ids, mask = want["input_ids"], want["attention_mask"].bool()
    close(model.qformer.read_photos(keys)[0], want["query_hidden"])
    photos = model.encode_photos(keys)
    close(photos, want["image_feats"])
    hidden = model.qformer.read_texts(ids, mask)
    close(hidden[mask], want["text_hidden"][mask])
    texts = model.encode_texts(ids, mask)
    close(texts, want["text_feats"])
    close(itc_scores(photos, texts), want["sim_i2t"])
    close(torch.einsum("iqe,te->itq", photos, texts), want["sim_q2t"])
    longest = int(mask.sum(1)[:3].max())  # a text alone or padded less gives the same vector
    close(model.encode_texts(ids[:3, :longest], mask[:3, :longest]), want["text_feats"][:3])
    close(model.encode_texts(ids[3:4, :3], mask[3:4, :3]), want["text_feats"][3:4])


@SCALES
def test_itm(scale: str) -> None:
    _, want = load_golden(f"c_itm_{scale}")
    model = small_model(scale)
    photo, text = want["pairs"].T
    patches = model.encode_patches(normal(201, (4, 3, 56, 56)))
    ids, mask = want["input_ids"][text], want["attention_mask"][text].bool()
    keys = [(k[photo], v[photo]) for k, v in model.compute_photo_keys(patches)]
    logits = model.match(keys, ids, mask)
    close(logits, want["logits"])
    close(logits[:, 1], want["compute_itm"])
    close(logits[:6], want["blip2itm_itm_first6"])
    hidden = model.qformer.read_pairs([(k[:4], v[:4]) for k, v in keys], ids[:4], mask[:4])
    seen = torch.cat([torch.ones(4, 8, dtype=torch.bool), mask[:4]], dim=1)
    close(hidden[seen], want["hidden_first4"][seen])
    one = model.match([(k[:1], v[:1]) for k, v in keys], ids[:1, : mask[0].sum()], mask[:1, : mask[0].sum()])
    close(one, want["logits"][:1])


@SCALES
def test_itg(scale: str) -> None:
    _, want = load_golden(f"d_itg_{scale}")
    model = small_model(scale)
    keys = model.compute_photo_keys(model.encode_patches(normal(201, (4, 3, 56, 56))))
    _, past = model.qformer.read_photos(keys)
    for layer in (0, 3):
        close(past[layer][0], want[f"past_{layer}_key"])
        close(past[layer][1], want[f"past_{layer}_value"])
    ids, mask = want["decoder_input_ids"], want["attention_mask"].bool()
    logits = caption_logits(model, past, ids, mask)
    close(logits[..., ::61][mask], want["logits_every61"][mask])
    assert torch.equal(logits.argmax(-1)[mask], want["argmax"][mask])
    log_probs = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    close(log_probs[mask[:, 1:]], want["next_token_logprob"][mask[:, 1:]])


@SCALES
def test_itg_generation(scale: str) -> None:
    """Greedy ids are equal, and so are beam search's (transformers 4.33 made them)."""
    info, want = load_golden(f"d_itg_{scale}")
    model = small_model(scale)
    keys = model.compute_photo_keys(model.encode_patches(normal(201, (4, 3, 56, 56))[:2]))
    for name, how in info["generation"].items():
        got = search_captions(
            model, keys, dec_id=how["bos"], sep_id=how["eos"], pad_id=how["pad"],
            num_beams=how["num_beams"], min_length=how["min_length"], max_length=how["max_length"],
        )  # fmt: skip
        assert torch.equal(got, want[f"gen_{name}"]), name


@SCALES
def test_feature_extraction(scale: str) -> None:
    _, want = load_golden(f"f_features_{scale}")
    model = small_model(scale)
    keys = model.compute_photo_keys(model.encode_patches(normal(201, (4, 3, 56, 56))))
    ids, mask = want["input_ids"], want["attention_mask"].bool()
    close(model.qformer.read_photos(keys)[0], want["image_embeds"])
    close(model.encode_photos(keys), want["image_embeds_proj"])
    hidden = model.qformer.read_texts(ids, mask)
    close(hidden[mask], want["text_embeds"][mask])
    projected = torch.nn.functional.normalize(model.text_head(hidden), dim=-1)
    close(projected[mask], want["text_embeds_proj"][mask])
    close(model.qformer.read_pairs(keys, ids, mask, queries_only=True), want["multimodal_embeds"])
    close(model.qformer.read_pairs(keys, ids, mask)[:, :8], want["multimodal_embeds"])


def test_own_golden_set() -> None:
    with np.load(golden_small.FILE) as stored:
        want = {name: stored[name] for name in stored.files}
    got = golden_small.compute()
    assert got.keys() == want.keys()
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, atol=2e-5, rtol=0, err_msg=name)
