"""Translate the tensor names of other BLIP-2 code to ours and back.

Each layout has a table of rows, each with a pattern of the other code and a pattern of ours. `{i}` is a layer number,
and `*` stands for the end of the name (weight or bias). Where two patterns fit a name, the first row counts. A name
that no row fits is an error.

Three differences do not show in names: only LAVIS has the temperature and the ITG head; `ln_vision` has the epsilon
1e-5 in LAVIS and 1e-6 in transformers; EVA's attention has no bias for the keys, which transformers writes as zeros.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache

from torch import Tensor

from engine.checkpoints.tensors import StoredTensor
from engine.errors import CheckpointError

Table = tuple[tuple[str, str | None], ...]

_CLIP = "visual_encoder.transformer.resblocks.{i}"
_VIT = "vision.backbone.blocks.{i}"


def _text_rows(layer: str, inner: str) -> Table:
    """Name the tensors of a BERT layer, which reads the text in a Q-Former.

    layer: prefix of the layer in the other code. inner: what that code calls the attention inside an attention.
    """
    ours = "qformer.layers.{i}"
    return (
        (f"{layer}.attention.output.dense.*", f"{ours}.attention.out.*"),
        (f"{layer}.attention.output.LayerNorm.*", f"{ours}.attention.norm.*"),
        (f"{layer}.attention.{inner}.*", f"{ours}.attention.*"),
        (f"{layer}.intermediate.dense.*", f"{ours}.text_mlp.up.*"),
        (f"{layer}.output.dense.*", f"{ours}.text_mlp.down.*"),
        (f"{layer}.output.LayerNorm.*", f"{ours}.text_mlp.norm.*"),
    )


def _layer_rows(layer: str, inner: str) -> Table:
    """Name the tensors of a Q-Former layer: those of BERT, and those that the queries have beside them."""
    ours = "qformer.layers.{i}"
    return (
        *_text_rows(layer, inner),
        (f"{layer}.crossattention.output.dense.*", f"{ours}.cross_attention.out.*"),
        (f"{layer}.crossattention.output.LayerNorm.*", f"{ours}.cross_attention.norm.*"),
        (f"{layer}.crossattention.{inner}.*", f"{ours}.cross_attention.*"),
        (f"{layer}.intermediate_query.dense.*", f"{ours}.query_mlp.up.*"),
        (f"{layer}.output_query.dense.*", f"{ours}.query_mlp.down.*"),
        (f"{layer}.output_query.LayerNorm.*", f"{ours}.query_mlp.norm.*"),
    )


BERT: Table = (
    ("embeddings.word_embeddings.weight", "qformer.words.weight"),
    ("embeddings.position_embeddings.weight", "qformer.positions.weight"),
    ("embeddings.LayerNorm.*", "qformer.norm.*"),
    *_text_rows("encoder.layer.{i}", "self"),
    # The head for masked words, which some folders have.
    ("cls.predictions.transform.dense.*", "caption_head.dense.*"),
    ("cls.predictions.transform.LayerNorm.*", "caption_head.norm.*"),
    ("cls.predictions.bias", "caption_head.bias"),
)
"""Names of a Hugging Face BERT, without their prefix "bert."."""

LAVIS: Table = (
    # The frozen encoder EVA ViT-g, by timm's names.
    ("visual_encoder.cls_token", "vision.backbone.cls_token"),
    ("visual_encoder.pos_embed", "vision.backbone.pos_embed"),
    ("visual_encoder.patch_embed.proj.*", "vision.backbone.patch_embed.proj.*"),
    ("visual_encoder.blocks.{i}.*", f"{_VIT}.*"),
    # The frozen encoder CLIP ViT-L, by OpenAI's names.
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
    # The Q-Former.
    ("ln_vision.*", "vision_norm.*"),
    ("query_tokens", "qformer.queries"),
    ("Qformer.bert.embeddings.word_embeddings.weight", "qformer.words.weight"),
    ("Qformer.bert.embeddings.position_embeddings.weight", "qformer.positions.weight"),
    ("Qformer.bert.embeddings.LayerNorm.*", "qformer.norm.*"),
    ("Qformer.bert.embeddings.position_ids", None),  # It is the constant 0, 1, 2, ...
    *_layer_rows("Qformer.bert.encoder.layer.{i}", "self"),
    # The heads.
    ("Qformer.cls.predictions.transform.dense.*", "caption_head.dense.*"),
    ("Qformer.cls.predictions.transform.LayerNorm.*", "caption_head.norm.*"),
    ("Qformer.cls.predictions.decoder.bias", "caption_head.bias"),
    ("Qformer.cls.predictions.bias", None),  # It is an alias of decoder.bias.
    ("Qformer.cls.predictions.decoder.weight", None),  # It is tied to word_embeddings.
    ("vision_proj.*", "photo_head.*"),
    ("text_proj.*", "text_head.*"),
    ("itm_head.*", "match_head.*"),
    ("temp", "temperature"),
)

LAVIS_CAPTIONER: Table = (
    *LAVIS,
    ("opt_proj.*", "projection.*"),
    ("t5_proj.*", "projection.*"),
    ("llm_proj.*", "projection.*"),
)
"""Names of LAVIS' stage 2. The tensors of its language model are taken out before; see `split_language`."""

_HF_VIT = "vision_model.encoder.layers.{i}"

TRANSFORMERS: Table = (
    ("vision_model.embeddings.class_embedding", "vision.backbone.cls_token"),
    ("vision_model.embeddings.position_embedding", "vision.backbone.pos_embed"),
    ("vision_model.embeddings.patch_embedding.*", "vision.backbone.patch_embed.proj.*"),
    (f"{_HF_VIT}.layer_norm1.*", f"{_VIT}.norm1.*"),
    (f"{_HF_VIT}.layer_norm2.*", f"{_VIT}.norm2.*"),
    (f"{_HF_VIT}.self_attn.qkv.weight", f"{_VIT}.attn.qkv.weight"),
    (f"{_HF_VIT}.self_attn.qkv.bias", f"{_VIT}.attn.qkv.bias"),  # EVA has q_bias, zeros, v_bias.
    (f"{_HF_VIT}.self_attn.projection.*", f"{_VIT}.attn.proj.*"),
    (f"{_HF_VIT}.mlp.*", f"{_VIT}.mlp.*"),
    ("vision_model.post_layernorm.*", "vision_norm.*"),
    ("query_tokens", "qformer.queries"),
    ("embeddings.word_embeddings.weight", "qformer.words.weight"),
    ("embeddings.position_embeddings.weight", "qformer.positions.weight"),
    ("embeddings.position_ids", None),  # Older versions wrote this constant.
    ("qformer.layernorm.*", "qformer.norm.*"),
    *_layer_rows("qformer.encoder.layer.{i}", "attention"),
    ("vision_projection.*", "photo_head.*"),
    ("text_projection.*", "text_head.*"),
    ("itm_head.*", "match_head.*"),
)

TRANSFORMERS_CAPTIONER: Table = (
    # Only InstructBLIP has the first four.
    ("qformer.embeddings.word_embeddings.weight", "qformer.words.weight"),
    ("qformer.embeddings.position_embeddings.weight", "qformer.positions.weight"),
    ("qformer.embeddings.position_ids", None),
    ("qformer.embeddings.layernorm.*", "qformer.norm.*"),
    ("language_projection.*", "projection.*"),
    *TRANSFORMERS,
)
"""Names of transformers' Blip2ForConditionalGeneration and InstructBlipForConditionalGeneration."""
TRANSFORMERS_WITHOUT_TEXT: Table = TRANSFORMERS_CAPTIONER[4:]
"""Names of Blip2ForConditionalGeneration alone, whose Q-Former reads no prompt; used to write it."""

LANGUAGE_MODEL = ("language_model.", "opt_model.", "t5_model.", "llm_model.")
"""Prefixes of the language model's tensors in stage 2 of transformers and LAVIS."""


def _compile_pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(
        re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"(?P<end>.+)") + "$"
    )


def _fill_pattern(pattern: str, match: re.Match[str]) -> str:
    parts = match.groupdict()
    return pattern.replace("{i}", parts.get("i") or "").replace("*", parts.get("end") or "")


@cache
def _compile_table(table: Table) -> tuple[tuple[re.Pattern[str], str | None], ...]:
    return tuple((_compile_pattern(theirs), ours) for theirs, ours in table)


@cache
def _compile_table_back(table: Table) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((_compile_pattern(ours), theirs) for theirs, ours in table if ours is not None)


def to_our_name(key: str, table: Table) -> str | None:
    """Return our name of a tensor of the other code, None for one that is an alias or a constant.

    Raises CheckpointError for an unknown key.
    """
    for pattern, ours in _compile_table(table):
        if match := pattern.match(key):
            return None if ours is None else _fill_pattern(ours, match)
    raise CheckpointError(f"The tensor {key!r} has no place in a BLIP-2 model of this kind.")


def to_their_name(name: str, table: Table) -> str | None:
    """Return the name that one of our tensors has in the other code, None when it has none there."""
    for pattern, theirs in _compile_table_back(table):
        if match := pattern.match(name):
            return _fill_pattern(theirs, match)
    return None


def rename_tensors(theirs: Mapping[str, StoredTensor], table: Table) -> dict[str, StoredTensor]:
    """Return the tensors of another code's checkpoint under our names and with our shapes.

    table: one of the tables of this file. Raises CheckpointError that names the first ten unknown keys.
    """
    ours: dict[str, StoredTensor] = {}
    unknown = []
    for key, tensor in theirs.items():
        try:
            name = to_our_name(key, table)
        except CheckpointError:
            unknown.append(key)
            continue
        if name == "qformer.queries":
            tensor = tensor.with_change(lambda t: t.reshape(t.shape[-2:]), tensor.shape[-2:])
        elif name == "vision.backbone.cls_token":
            tensor = tensor.with_change(lambda t: t.reshape(1, 1, -1), (1, 1, tensor.shape[-1]))
        elif name == "vision.backbone.pos_embed":
            tensor = tensor.with_change(lambda t: t.reshape(1, *t.shape[-2:]), (1, *tensor.shape[-2:]))
        elif name is not None and name.endswith(".attn.qkv.bias") and key.startswith("vision_model."):
            ours |= _split_eva_bias(name, tensor)
            continue
        if name is not None:
            ours[name] = tensor
    if unknown:
        shown = ", ".join(sorted(unknown)[:10]) + (f" and {len(unknown) - 10} more" * (len(unknown) > 10))
        raise CheckpointError(f"These tensors have no place in a BLIP-2 model of this kind: {shown}.")
    return ours


def split_language(
    theirs: Mapping[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """Split another code's stage-2 checkpoint; return (the other tensors, the language model's without their
    prefix).
    """
    others, language = {}, {}
    for key, tensor in theirs.items():
        prefix = next((prefix for prefix in LANGUAGE_MODEL if key.startswith(prefix)), None)
        if prefix is None:
            others[key] = tensor
        else:
            language[key.removeprefix(prefix)] = tensor
    return others, language


def _split_eva_bias(name: str, tensor: StoredTensor) -> dict[str, StoredTensor]:
    """Return the biases of queries and values, which transformers keeps in one tensor with zeros for the keys
    between.
    """
    width = tensor.shape[0] // 3

    def make_cut(number: int) -> Callable[[Tensor], Tensor]:
        def cut(bias: Tensor) -> Tensor:
            if bias[width : 2 * width].any():
                raise CheckpointError(
                    f"The tensor for {name!r} has a bias for the keys, but EVA's attention has none."
                )
            return bias[number * width : (number + 1) * width]

        return cut

    block = name.removesuffix("qkv.bias")
    return {
        f"{block}q_bias": tensor.with_change(make_cut(0), (width,)),
        f"{block}v_bias": tensor.with_change(make_cut(2), (width,)),
    }
