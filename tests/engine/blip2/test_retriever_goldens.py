"""The retrieval model gives the outputs that the original BLIP-2 code recorded, fp32, both weight scales (goldens a
to d, f).
"""

from __future__ import annotations

from functools import cache

import golden_small
import numpy as np
import pytest
import torch
from caption_logits import caption_logits
from reference import draw_normal, draw_weight, load_golden, rename_from_lavis, small_config, small_state

from engine.blip2.config import VisionConfig
from engine.blip2.itg_decoding import search_captions
from engine.blip2.retriever import Retriever, itc_scores
from engine.blip2.vision import VisionEncoder
from engine.checkpoints.filling import resize_positions

SCALES = pytest.mark.parametrize("scale", ["std", "strong"])


def assert_close(actual: torch.Tensor, want: torch.Tensor, atol: float = 2e-5) -> None:
    assert actual.shape == want.shape
    torch.testing.assert_close(actual, want, atol=atol, rtol=0)


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
    pixels = draw_normal(101, (2, 3, 56, 56))
    features = model.vision(pixels)
    assert_close(features, want["features"])
    assert_close(model.vision_norm(features), want["ln_vision"])
    x = model.vision.backbone._pos_embed(model.vision.backbone.patch_embed(pixels))[0]
    for block, want_block in zip(model.vision.backbone.blocks, want["blocks"], strict=True):
        x = block(x)
        assert_close(x, want_block)


def test_eva_positions_resized() -> None:
    _, want = load_golden("a_eva_interp_std")
    config = small_config().vision
    larger = VisionEncoder(
        VisionConfig(config.timm_name, 84, 88, {**config.timm_args, "img_size": 84})
    ).eval()
    state = small_model("std").vision.state_dict()
    state["backbone.pos_embed"] = resize_positions(state["backbone.pos_embed"], 6, align_corners=False)
    assert_close(state["backbone.pos_embed"], want["pos_embed"])
    larger.load_state_dict(state)
    assert_close(larger(draw_normal(102, (1, 3, 84, 84))).detach(), want["features"])


def test_clip_encoder() -> None:
    info, want = load_golden("a_clip_std")
    state = {n: draw_weight(n, s, info["w_scale"], info["b_scale"]) for n, s in info["shapes"].items()}
    ours = rename_from_lavis(state)
    backbone = {k.removeprefix("vision."): v for k, v in ours.items() if k.startswith("vision.")}
    args = {"patch_size": 14, "embed_dim": 64, "depth": 3, "num_heads": 4}
    for side, seed, name in ((4, 101, "features"), (6, 102, "interp_features")):
        config = VisionConfig(
            "vit_large_patch14_clip_quickgelu_224", 14 * side, 64, {**args, "img_size": 14 * side}
        )
        encoder = VisionEncoder(config).eval().requires_grad_(False)
        positions = resize_positions(backbone["backbone.pos_embed"], side, align_corners=True)
        if side == 6:
            assert_close(positions[0], want["interp_positional_embedding"])
        encoder.load_state_dict({**backbone, "backbone.pos_embed": positions})
        features = encoder(draw_normal(seed, (2 if side == 4 else 1, 3, 14 * side, 14 * side)))
        assert_close(features, want[name])
        if side == 4:
            norm = torch.nn.functional.layer_norm(
                features, (64,), ours["vision_norm.weight"], ours["vision_norm.bias"], 1e-5
            )
            assert_close(norm, want["ln_vision"])


@SCALES
def test_itc(scale: str) -> None:
    _, want = load_golden(f"b_itc_{scale}")
    model = small_model(scale)
    keys = model.compute_photo_keys(model.encode_patches(draw_normal(201, (4, 3, 56, 56))))
    ids, mask = want["input_ids"], want["attention_mask"].bool()
    assert_close(model.qformer.read_photos(keys)[0], want["query_hidden"])
    photos = model.encode_photos(keys)
    assert_close(photos, want["image_feats"])
    hidden = model.qformer.read_texts(ids, mask)
    assert_close(hidden[mask], want["text_hidden"][mask])
    texts = model.encode_texts(ids, mask)
    assert_close(texts, want["text_feats"])
    assert_close(itc_scores(photos, texts), want["sim_i2t"])
    assert_close(torch.einsum("iqe,te->itq", photos, texts), want["sim_q2t"])
    longest = int(mask.sum(1)[:3].max())  # a text alone or padded less gives the same vector
    assert_close(model.encode_texts(ids[:3, :longest], mask[:3, :longest]), want["text_feats"][:3])
    assert_close(model.encode_texts(ids[3:4, :3], mask[3:4, :3]), want["text_feats"][3:4])


@SCALES
def test_itm(scale: str) -> None:
    _, want = load_golden(f"c_itm_{scale}")
    model = small_model(scale)
    photo, text = want["pairs"].T
    patches = model.encode_patches(draw_normal(201, (4, 3, 56, 56)))
    ids, mask = want["input_ids"][text], want["attention_mask"][text].bool()
    keys = [(k[photo], v[photo]) for k, v in model.compute_photo_keys(patches)]
    logits = model.match(keys, ids, mask)
    assert_close(logits, want["logits"])
    assert_close(logits[:, 1], want["compute_itm"])
    assert_close(logits[:6], want["blip2itm_itm_first6"])
    hidden = model.qformer.read_pairs([(k[:4], v[:4]) for k, v in keys], ids[:4], mask[:4])
    seen = torch.cat([torch.ones(4, 8, dtype=torch.bool), mask[:4]], dim=1)
    assert_close(hidden[seen], want["hidden_first4"][seen])
    logits_of_first = model.match(
        [(k[:1], v[:1]) for k, v in keys], ids[:1, : mask[0].sum()], mask[:1, : mask[0].sum()]
    )
    assert_close(logits_of_first, want["logits"][:1])


@SCALES
def test_itg(scale: str) -> None:
    _, want = load_golden(f"d_itg_{scale}")
    model = small_model(scale)
    keys = model.compute_photo_keys(model.encode_patches(draw_normal(201, (4, 3, 56, 56))))
    _, past = model.qformer.read_photos(keys)
    for layer in (0, 3):
        assert_close(past[layer][0], want[f"past_{layer}_key"])
        assert_close(past[layer][1], want[f"past_{layer}_value"])
    ids, mask = want["decoder_input_ids"], want["attention_mask"].bool()
    logits = caption_logits(model, past, ids, mask)
    assert_close(logits[..., ::61][mask], want["logits_every61"][mask])
    assert torch.equal(logits.argmax(-1)[mask], want["argmax"][mask])
    log_probs = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    assert_close(log_probs[mask[:, 1:]], want["next_token_logprob"][mask[:, 1:]])


@SCALES
def test_itg_generation(scale: str) -> None:
    """The ids of greedy search and of beam search equal those that transformers 4.33 wrote."""
    info, want = load_golden(f"d_itg_{scale}")
    model = small_model(scale)
    keys = model.compute_photo_keys(model.encode_patches(draw_normal(201, (4, 3, 56, 56))[:2]))
    for name, options in info["generation"].items():
        actual = search_captions(
            model, keys, dec_id=options["bos"], sep_id=options["eos"], pad_id=options["pad"],
            num_beams=options["num_beams"], min_length=options["min_length"], max_length=options["max_length"],
        )  # fmt: skip
        assert torch.equal(actual, want[f"gen_{name}"]), name


@SCALES
def test_feature_extraction(scale: str) -> None:
    _, want = load_golden(f"f_features_{scale}")
    model = small_model(scale)
    keys = model.compute_photo_keys(model.encode_patches(draw_normal(201, (4, 3, 56, 56))))
    ids, mask = want["input_ids"], want["attention_mask"].bool()
    assert_close(model.qformer.read_photos(keys)[0], want["image_embeds"])
    assert_close(model.encode_photos(keys), want["image_embeds_proj"])
    hidden = model.qformer.read_texts(ids, mask)
    assert_close(hidden[mask], want["text_embeds"][mask])
    projected = torch.nn.functional.normalize(model.text_head(hidden), dim=-1)
    assert_close(projected[mask], want["text_embeds_proj"][mask])
    assert_close(model.qformer.read_pairs(keys, ids, mask, queries_only=True), want["multimodal_embeds"])
    assert_close(model.qformer.read_pairs(keys, ids, mask)[:, :8], want["multimodal_embeds"])


def test_own_golden_set() -> None:
    with np.load(golden_small.FILE) as stored:
        want = {name: stored[name] for name in stored.files}
    actual = golden_small.compute_arrays()
    assert actual.keys() == want.keys()
    for name, values in want.items():
        np.testing.assert_allclose(actual[name], values, atol=2e-5, rtol=0, err_msg=name)
