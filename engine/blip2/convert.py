"""Tensor names of other BLIP-2 code, and what they are called here.

One table: a LAVIS key pattern and ours. `{i}` is a layer number, `*` is the rest (weight or bias). Everything
is strict: a key that no row names is an error, and so is a tensor that stays empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from engine.errors import CheckpointError

_BERT = "Qformer.bert.encoder.layer.{i}"
_CLIP = "visual_encoder.transformer.resblocks.{i}"
_VIT = "vision.backbone.blocks.{i}"

LAVIS: tuple[tuple[str, str | None], ...] = (
    # frozen encoder, EVA ViT-g (timm's names)
    ("visual_encoder.cls_token", "vision.backbone.cls_token"),
    ("visual_encoder.pos_embed", "vision.backbone.pos_embed"),
    ("visual_encoder.patch_embed.proj.*", "vision.backbone.patch_embed.proj.*"),
    ("visual_encoder.blocks.{i}.*", f"{_VIT}.*"),
    # frozen encoder, CLIP ViT-L (OpenAI's names)
    ("visual_encoder.class_embedding", "vision.backbone.cls_token"),
    ("visual_encoder.positional_embedding", "vision.backbone.pos_embed"),
    ("visual_encoder.conv1.weight", "vision.backbone.patch_embed.proj.weight"),
    ("visual_encoder.ln_pre.*", "vision.backbone.norm_pre.*"),
    (f"{_CLIP}.attn.in_proj_weight", f"{_VIT}.attn.qkv.weight"),
    (f"{_CLIP}.attn.in_proj_bias", f"{_VIT}.attn.qkv.bias"),
    (f"{_CLIP}.attn.out_proj.*", f"{_VIT}.attn.proj.*"),
    (f"{_CLIP}.ln_1.*", f"{_VIT}.norm1.*"),
    (f"{_CLIP}.ln_2.*", f"{_VIT}.norm2.*"),
    (f"{_CLIP}.mlp.c_fc.*", f"{_VIT}.mlp.fc1.*"),
    (f"{_CLIP}.mlp.c_proj.*", f"{_VIT}.mlp.fc2.*"),
    # Q-Former
    ("ln_vision.*", "vision_norm.*"),
    ("query_tokens", "qformer.queries"),
    ("Qformer.bert.embeddings.word_embeddings.weight", "qformer.words.weight"),
    ("Qformer.bert.embeddings.position_embeddings.weight", "qformer.positions.weight"),
    ("Qformer.bert.embeddings.LayerNorm.*", "qformer.norm.*"),
    ("Qformer.bert.embeddings.position_ids", None),  # a constant: 0, 1, 2, ...
    (f"{_BERT}.attention.self.*", "qformer.layers.{i}.attention.*"),
    (f"{_BERT}.attention.output.dense.*", "qformer.layers.{i}.attention.out.*"),
    (f"{_BERT}.attention.output.LayerNorm.*", "qformer.layers.{i}.attention.norm.*"),
    (f"{_BERT}.crossattention.self.*", "qformer.layers.{i}.cross_attention.*"),
    (f"{_BERT}.crossattention.output.dense.*", "qformer.layers.{i}.cross_attention.out.*"),
    (f"{_BERT}.crossattention.output.LayerNorm.*", "qformer.layers.{i}.cross_attention.norm.*"),
    (f"{_BERT}.intermediate.dense.*", "qformer.layers.{i}.text_mlp.up.*"),
    (f"{_BERT}.output.dense.*", "qformer.layers.{i}.text_mlp.down.*"),
    (f"{_BERT}.output.LayerNorm.*", "qformer.layers.{i}.text_mlp.norm.*"),
    (f"{_BERT}.intermediate_query.dense.*", "qformer.layers.{i}.query_mlp.up.*"),
    (f"{_BERT}.output_query.dense.*", "qformer.layers.{i}.query_mlp.down.*"),
    (f"{_BERT}.output_query.LayerNorm.*", "qformer.layers.{i}.query_mlp.norm.*"),
    # heads
    ("Qformer.cls.predictions.transform.dense.*", "caption_head.dense.*"),
    ("Qformer.cls.predictions.transform.LayerNorm.*", "caption_head.norm.*"),
    ("Qformer.cls.predictions.decoder.bias", "caption_head.bias"),
    ("Qformer.cls.predictions.bias", None),  # alias of decoder.bias
    ("Qformer.cls.predictions.decoder.weight", None),  # tied to word_embeddings
    ("vision_proj.*", "photo_head.*"),
    ("text_proj.*", "text_head.*"),
    ("itm_head.*", "match_head.*"),
    ("temp", "temperature"),
)


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(
        re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"(?P<rest>.+)") + "$"
    )


_LAVIS_PATTERNS = tuple((_compile(theirs), ours) for theirs, ours in LAVIS)


def name_from_lavis(key: str) -> str | None:
    """Our name of a LAVIS key, None when it holds nothing of its own. Raises CheckpointError for an unknown key."""
    for pattern, ours in _LAVIS_PATTERNS:
        if found := pattern.match(key):
            if ours is None:
                return None
            parts = found.groupdict()
            return ours.replace("{i}", parts.get("i") or "").replace("*", parts.get("rest") or "")
    raise CheckpointError(f"The tensor {key!r} has no place in a BLIP-2 retrieval model.")


def state_from_lavis(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LAVIS stage-1 state dict under our names and shapes. Raises CheckpointError for an unknown key."""
    made: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if (name := name_from_lavis(key)) is None:
            continue
        if name == "qformer.queries":
            tensor = tensor[0]
        elif name == "vision.backbone.cls_token":
            tensor = tensor.reshape(1, 1, -1)
        elif name == "vision.backbone.pos_embed" and tensor.ndim == 2:
            tensor = tensor[None]
        made[name] = tensor
    return made


def resize_positions(positions_1NV: Tensor, side: int, *, align_corners: bool) -> Tensor:
    """Position embeddings of a square grid, bicubically resized to side x side; the class position stays.

    LAVIS uses align_corners=False for EVA ViT-g (eva_vit.py) and True for CLIP ViT-L (clip_vit.py).
    positions: (1, 1 + n*n, V) -> (1, 1 + side*side, V).
    """
    cls, grid = positions_1NV[:, :1], positions_1NV[:, 1:]
    old = round(grid.shape[1] ** 0.5)
    if old == side:
        return positions_1NV
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(
        grid, size=(side, side), mode="bicubic", align_corners=align_corners
    )
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
