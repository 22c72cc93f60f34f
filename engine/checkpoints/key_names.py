"""Tensor names of other BLIP-2 code, and what they are called here.

Each layout has a table of rows: a pattern of theirs and ours. `{i}` is a layer number, `*` the rest (weight or bias).
Where two patterns fit a name, the first row counts. A key that no row names is an error.

Differences that names do not show: the temperature and the ITG head exist in LAVIS alone; `ln_vision` has eps 1e-5 in
LAVIS, 1e-6 in transformers; EVA's attention has no bias for the keys, which transformers writes as zeros.
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
    # the head for masked words, where the folder has it
    ("cls.predictions.transform.dense.*", "caption_head.dense.*"),
    ("cls.predictions.transform.LayerNorm.*", "caption_head.norm.*"),
    ("cls.predictions.bias", "caption_head.bias"),
)
"""The tensors of a Hugging Face BERT, without their prefix "bert."."""

LAVIS: Table = (
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
    *_layer_rows("Qformer.bert.encoder.layer.{i}", "self"),
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

LAVIS_CAPTIONER: Table = (
    *LAVIS,
    ("opt_proj.*", "projection.*"),
    ("t5_proj.*", "projection.*"),
    ("llm_proj.*", "projection.*"),
)
"""Stage 2. The language model's own tensors, where there are any, are taken out before: see `split_language`."""

_HF_VIT = "vision_model.encoder.layers.{i}"

TRANSFORMERS: Table = (
    ("vision_model.embeddings.class_embedding", "vision.backbone.cls_token"),
    ("vision_model.embeddings.position_embedding", "vision.backbone.pos_embed"),
    ("vision_model.embeddings.patch_embedding.*", "vision.backbone.patch_embed.proj.*"),
    (f"{_HF_VIT}.layer_norm1.*", f"{_VIT}.norm1.*"),
    (f"{_HF_VIT}.layer_norm2.*", f"{_VIT}.norm2.*"),
    (f"{_HF_VIT}.self_attn.qkv.weight", f"{_VIT}.attn.qkv.weight"),
    (f"{_HF_VIT}.self_attn.qkv.bias", f"{_VIT}.attn.qkv.bias"),  # in EVA: q_bias, zeros, v_bias
    (f"{_HF_VIT}.self_attn.projection.*", f"{_VIT}.attn.proj.*"),
    (f"{_HF_VIT}.mlp.*", f"{_VIT}.mlp.*"),
    ("vision_model.post_layernorm.*", "vision_norm.*"),
    ("query_tokens", "qformer.queries"),
    ("embeddings.word_embeddings.weight", "qformer.words.weight"),
    ("embeddings.position_embeddings.weight", "qformer.positions.weight"),
    ("embeddings.position_ids", None),  # a constant that older versions wrote
    ("qformer.layernorm.*", "qformer.norm.*"),
    *_layer_rows("qformer.encoder.layer.{i}", "attention"),
    ("vision_projection.*", "photo_head.*"),
    ("text_projection.*", "text_head.*"),
    ("itm_head.*", "match_head.*"),
)

TRANSFORMERS_CAPTIONER: Table = (
    (
        "qformer.embeddings.word_embeddings.weight",
        "qformer.words.weight",
    ),  # InstructBLIP's, and the next three
    ("qformer.embeddings.position_embeddings.weight", "qformer.positions.weight"),
    ("qformer.embeddings.position_ids", None),
    ("qformer.embeddings.layernorm.*", "qformer.norm.*"),
    ("language_projection.*", "projection.*"),
    *TRANSFORMERS,
)
"""Blip2ForConditionalGeneration and InstructBlipForConditionalGeneration."""
TRANSFORMERS_WITHOUT_TEXT: Table = TRANSFORMERS_CAPTIONER[4:]
"""Blip2ForConditionalGeneration alone, whose Q-Former reads no prompt: for the way back."""

LANGUAGE_MODEL = ("language_model.", "opt_model.", "t5_model.", "llm_model.")
"""Prefixes of the language model's tensors in transformers' and LAVIS' stage 2."""


def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(
        re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"(?P<rest>.+)") + "$"
    )


def _filled(pattern: str, found: re.Match[str]) -> str:
    parts = found.groupdict()
    return pattern.replace("{i}", parts.get("i") or "").replace("*", parts.get("rest") or "")


@cache
def _patterns(table: Table) -> tuple[tuple[re.Pattern[str], str | None], ...]:
    return tuple((_pattern(theirs), ours) for theirs, ours in table)


@cache
def _patterns_back(table: Table) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((_pattern(ours), theirs) for theirs, ours in table if ours is not None)


def our_name(key: str, table: Table) -> str | None:
    """Our name of a key, None when it holds nothing of its own. Raises CheckpointError for an unknown key."""
    for pattern, ours in _patterns(table):
        if found := pattern.match(key):
            return None if ours is None else _filled(ours, found)
    raise CheckpointError(f"The tensor {key!r} has no place in a BLIP-2 model of this kind.")


def their_name(name: str, table: Table) -> str | None:
    """The key that a tensor of ours has in the other code, None when it has none there."""
    for pattern, theirs in _patterns_back(table):
        if found := pattern.match(name):
            return _filled(theirs, found)
    return None


def renamed(theirs: Mapping[str, StoredTensor], table: Table) -> dict[str, StoredTensor]:
    """A checkpoint of another code under our names and shapes.

    table: one of those above. Raises CheckpointError naming the first ten keys that have no place here.
    """
    made: dict[str, StoredTensor] = {}
    unknown = []
    for key, tensor in theirs.items():
        try:
            name = our_name(key, table)
        except CheckpointError:
            unknown.append(key)
            continue
        if name == "qformer.queries":
            tensor = tensor.changed(lambda t: t.reshape(t.shape[-2:]), tensor.shape[-2:])
        elif name == "vision.backbone.cls_token":
            tensor = tensor.changed(lambda t: t.reshape(1, 1, -1), (1, 1, tensor.shape[-1]))
        elif name == "vision.backbone.pos_embed":
            tensor = tensor.changed(lambda t: t.reshape(1, *t.shape[-2:]), (1, *tensor.shape[-2:]))
        elif name is not None and name.endswith(".attn.qkv.bias") and key.startswith("vision_model."):
            made |= _eva_biases(name, tensor)
            continue
        if name is not None:
            made[name] = tensor
    if unknown:
        shown = ", ".join(sorted(unknown)[:10]) + (f" and {len(unknown) - 10} more" * (len(unknown) > 10))
        raise CheckpointError(f"These tensors have no place in a BLIP-2 model of this kind: {shown}.")
    return made


def split_language(
    theirs: Mapping[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """(all other tensors, the language model's under its own names), of a stage-2 checkpoint of another code."""
    rest, language = {}, {}
    for key, tensor in theirs.items():
        prefix = next((prefix for prefix in LANGUAGE_MODEL if key.startswith(prefix)), None)
        if prefix is None:
            rest[key] = tensor
        else:
            language[key.removeprefix(prefix)] = tensor
    return rest, language


def _eva_biases(name: str, tensor: StoredTensor) -> dict[str, StoredTensor]:
    """The biases of queries and values from the one that has zeros between them for the keys."""
    width = tensor.shape[0] // 3

    def part(number: int) -> Callable[[Tensor], Tensor]:
        def take(bias: Tensor) -> Tensor:
            if bias[width : 2 * width].any():
                raise CheckpointError(
                    f"The tensor for {name!r} has a bias for the keys, EVA's attention has none."
                )
            return bias[number * width : (number + 1) * width]

        return take

    block = name.removesuffix("qkv.bias")
    return {
        f"{block}q_bias": tensor.changed(part(0), (width,)),
        f"{block}v_bias": tensor.changed(part(2), (width,)),
    }
