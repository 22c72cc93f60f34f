"""Write our networks as folders that transformers loads.

They load as Blip2ForImageTextRetrieval, as Blip2ForConditionalGeneration, or as InstructBlipForConditionalGeneration
where the Q-Former reads the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from engine.blip2.captioner import Captioner
from engine.blip2.config import EVA, EVA_MLP_RATIO, Blip2Config, CaptionerConfig, QFormerConfig, VisionConfig
from engine.blip2.retriever import Retriever
from engine.checkpoints.key_names import (
    TRANSFORMERS,
    TRANSFORMERS_CAPTIONER,
    TRANSFORMERS_WITHOUT_TEXT,
    Table,
    to_their_name,
)
from engine.checkpoints.language_folder import collect_untied_tensors
from engine.checkpoints.layout import TOKENIZER, open_checkpoint_folder, write_files, write_folder
from engine.errors import CheckpointError


def convert_to_transformers(ours: Mapping[str, Tensor], table: Table = TRANSFORMERS) -> dict[str, Tensor]:
    """Return our tensors under the names of transformers.

    The temperature and the ITG head are left out, because transformers has no place for them. table: the names of one
    kind of model. Raises CheckpointError for a tensor of an image encoder that is not EVA ViT.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if name == "temperature" or name.startswith("caption_head."):
            continue
        if name.endswith((".attn.q_bias", ".attn.v_bias")):
            if name.endswith(".v_bias"):
                continue
            block = name.removesuffix("q_bias")
            bias = torch.cat([tensor, torch.zeros_like(tensor), ours[f"{block}v_bias"]])
            name, tensor = f"{block}qkv.bias", bias
        key = to_their_name(name, table)
        if key is None:
            raise CheckpointError(
                f"BLIP-2 in transformers has no place for the tensor {name!r}: its image encoder is EVA ViT."
            )
        theirs[key] = tensor[None] if name == "qformer.queries" else tensor
    return theirs


EVA_GIANT = {"patch_size": 14, "embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": EVA_MLP_RATIO}
"""Sizes of timm's architecture, for those that `timm_args` do not name."""
IMAGE_TOKEN = "<image>"
"""Token that stands for one query in the prompts of transformers' processors."""


def save_transformers(
    folder: Path, net: Retriever, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a retrieval network as a folder for transformers, without the temperature and the ITG head.

    transformers has one epsilon, 1e-6, for all norms of the encoder. For a LAVIS checkpoint, whose `vision_norm_eps` is
    1e-5, its numbers differ in the sixth digit. Raises CheckpointError for an encoder that is not EVA ViT.
    """
    values = make_transformers_config(net.config)
    ours = {name: tensor.detach().to("cpu", dtype) for name, tensor in net.state_dict().items()}
    write_folder(folder, convert_to_transformers(ours), tokenizer, values)


def save_transformers_captioner(
    folder: Path, net: Captioner, language_tokenizer: Tokenizer, tokenizer: Tokenizer | None = None, *,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """Write a captioning network as a folder for transformers; its language model is written as it is.

    tokenizer: the tokenizer of a Q-Former that reads the prompt. transformers puts the queries in the places of a
    special token: it gets the first row of the word embeddings that the tokenizer leaves free, else a new row, the mean
    of the others. Raises CheckpointError as `save_transformers` does.
    """
    from transformers import GenerationConfig  # This import takes seconds.

    language, language_config = net.language, net.config.language
    words = Tokenizer.from_str(language_tokenizer.to_str())
    words.add_special_tokens([IMAGE_TOKEN])
    image_id = words.token_to_id(IMAGE_TOKEN)
    assert image_id is not None
    if image_id >= language.get_input_embeddings().num_embeddings:
        _add_word_rows(language, image_id + 1)
    values = _make_captioner_config(net.config, language.config.to_dict(), image_id)
    table = TRANSFORMERS_CAPTIONER if language_config.reads_prompt else TRANSFORMERS_WITHOUT_TEXT
    ours = {
        name: tensor.detach().to("cpu", dtype)
        for name, tensor in net.state_dict().items()
        if not name.startswith("language.")
    }
    state = convert_to_transformers(ours, table)
    state |= {f"language_model.{name}": tensor for name, tensor in collect_untied_tensors(language).items()}
    with open_checkpoint_folder(folder) as half:
        write_files(half, state, words, values)
        GenerationConfig(
            bos_token_id=language_config.start_id,
            eos_token_id=language_config.end_id,
            pad_token_id=language_config.pad_id,
            decoder_start_token_id=getattr(language.config, "decoder_start_token_id", None),
        ).save_pretrained(half)
        if tokenizer is not None:
            (half / "qformer_tokenizer").mkdir()
            tokenizer.save(str(half / "qformer_tokenizer" / TOKENIZER))


def _add_word_rows(language: Any, size: int) -> None:
    """Add rows to a language model's word embeddings; each is the mean of the old rows, so that it is never likely."""
    before = language.get_input_embeddings().num_embeddings
    language.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for part in (language.get_input_embeddings(), language.get_output_embeddings()):
            part.weight[before:] = part.weight[:before].mean(dim=0)


def make_transformers_config(config: Blip2Config) -> dict[str, Any]:
    """Return the config.json of transformers' Blip2ForImageTextRetrieval.

    Raises CheckpointError as `save_transformers` does.
    """
    return {
        "model_type": "blip-2",
        "architectures": ["Blip2ForImageTextRetrieval"],
        "image_text_hidden_size": config.embed_dim,
        "num_query_tokens": config.qformer.num_queries,
        "vision_config": {"model_type": "blip_2_vision_model", **_make_vision_values(config.vision)},
        "qformer_config": {
            "model_type": "blip_2_qformer",
            **_make_qformer_values(config.qformer, config.vision),
            "use_qformer_text_input": True,
        },
    }


def _make_captioner_config(
    config: CaptionerConfig, language: dict[str, Any], image_id: int
) -> dict[str, Any]:
    """Return the config.json of a captioner: of transformers' Blip2 or InstructBlip ForConditionalGeneration.

    The special tokens are those with which BLIP-2 begins and ends a text. image_id: the number of `IMAGE_TOKEN`.
    """
    ours, instruct = config.language, config.language.reads_prompt
    ends = {"bos_token_id": ours.start_id, "eos_token_id": ours.end_id, "pad_token_id": ours.pad_id}
    kind, parts = ("instructblip", "instructblip") if instruct else ("blip-2", "blip_2")
    name = "InstructBlip" if instruct else "Blip2"
    return {
        "model_type": kind,
        "architectures": [f"{name}ForConditionalGeneration"],
        "num_query_tokens": config.qformer.num_queries,
        "image_token_index": image_id,
        "vision_config": {"model_type": f"{parts}_vision_model", **_make_vision_values(config.vision)},
        "qformer_config": {
            "model_type": f"{parts}_qformer",
            **_make_qformer_values(config.qformer, config.vision),
        },
        "text_config": language | {name: token for name, token in ends.items() if token is not None},
    }


def _make_vision_values(vision: VisionConfig) -> dict[str, Any]:
    if vision.timm_name != EVA or not vision.class_token or vision.final_norm:
        raise CheckpointError(
            f"The checkpoint cannot be written for transformers: its image encoder is {vision.timm_name!r}, and BLIP-2 "
            "in transformers has EVA ViT."
        )
    args = EVA_GIANT | vision.timm_args
    return {
        "hidden_size": vision.num_channels,
        "intermediate_size": int(vision.num_channels * args["mlp_ratio"]),
        "num_hidden_layers": args["depth"],
        "num_attention_heads": args["num_heads"],
        "image_size": vision.image_size,
        "patch_size": args["patch_size"],
        "layer_norm_eps": 1e-6,
    }


def _make_qformer_values(former: QFormerConfig, vision: VisionConfig) -> dict[str, Any]:
    if former.first_query_layer or former.patch_width:
        raise CheckpointError(
            f"The checkpoint cannot be written for transformers: its queries enter at layer {former.first_query_layer} "
            f"and its patches are projected to width {former.patch_width}; BLIP-2 in transformers knows neither."
        )
    return {
        "hidden_size": former.width,
        "num_hidden_layers": former.num_layers,
        "num_attention_heads": former.num_heads,
        "intermediate_size": former.mlp_width,
        "vocab_size": former.vocab_size,
        "max_position_embeddings": former.max_positions,
        "layer_norm_eps": former.norm_eps,
        "hidden_dropout_prob": former.dropout,
        "attention_probs_dropout_prob": former.dropout,
        "cross_attention_frequency": former.cross_attention_every,
        "encoder_hidden_size": vision.num_channels,
    }
