"""Our networks written as folders that transformers loads: Blip2ForImageTextRetrieval,
Blip2ForConditionalGeneration, and InstructBlipForConditionalGeneration for a Q-Former that reads the prompt.
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
    their_name,
)
from engine.checkpoints.language_folder import untied_state
from engine.checkpoints.layout import TOKENIZER, whole_folder, write_files, write_folder
from engine.errors import CheckpointError


def to_transformers(ours: Mapping[str, Tensor], table: Table = TRANSFORMERS) -> dict[str, Tensor]:
    """Our tensors under transformers' names (Blip2ForImageTextRetrieval, or those of the table), EVA encoder.

    The temperature and the ITG head are left out: transformers has no place for them. Raises CheckpointError for a
    tensor of another encoder.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if name == "temperature" or name.startswith("caption_head."):
            continue
        if name.endswith((".attn.q_bias", ".attn.v_bias")):
            if name.endswith(".v_bias"):
                continue
            block = name.removesuffix("q_bias")
            bias = torch.cat([tensor, torch.zeros_like(tensor), ours[f"{block}v_bias"]])
            name, tensor = f"{block}qkv.bias", bias
        key = their_name(name, table)
        if key is None:
            raise CheckpointError(
                f"transformers' BLIP-2 has no place for {name!r}: its image encoder is EVA ViT."
            )
        made[key] = tensor[None] if name == "qformer.queries" else tensor
    return made


EVA_GIANT = {"patch_size": 14, "embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": EVA_MLP_RATIO}
"""What timm's architecture is where `timm_args` do not say."""
IMAGE_TOKEN = "<image>"
"""Stands for one query in what transformers' processors write."""


def save_transformers(
    folder: Path, net: Retriever, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write net for transformers; the temperature and the ITG head stay behind, it has no place for them.

    transformers has one eps for all norms of the encoder, 1e-6: for a LAVIS checkpoint, whose `vision_norm_eps` is
    1e-5, its numbers differ in the sixth digit. Raises CheckpointError for an encoder that is not EVA ViT.
    """
    values = transformers_config(net.config)
    ours = {name: tensor.detach().to("cpu", dtype) for name, tensor in net.state_dict().items()}
    write_folder(folder, to_transformers(ours), tokenizer, values)


def save_transformers_captioner(
    folder: Path, net: Captioner, language_tokenizer: Tokenizer, tokenizer: Tokenizer | None = None, *,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """The same of a generative model, whose language model is written as it is.

    tokenizer: of a Q-Former that reads the prompt. transformers puts the queries in the places of a token of their own:
    the first row of the word embeddings that the tokenizer leaves free, else a new one, the mean of the others.
    Raises CheckpointError as `save_transformers`.
    """
    from transformers import GenerationConfig  # late: seconds

    language, about = net.language, net.config.language
    words = Tokenizer.from_str(language_tokenizer.to_str())
    words.add_special_tokens([IMAGE_TOKEN])
    image_id = words.token_to_id(IMAGE_TOKEN)
    assert image_id is not None
    if image_id >= language.get_input_embeddings().num_embeddings:
        _add_row(language, image_id + 1)
    values = _captioner_config(net.config, language.config.to_dict(), image_id)
    table = TRANSFORMERS_CAPTIONER if about.reads_prompt else TRANSFORMERS_WITHOUT_TEXT
    ours = {
        name: tensor.detach().to("cpu", dtype)
        for name, tensor in net.state_dict().items()
        if not name.startswith("language.")
    }
    state = to_transformers(ours, table)
    state |= {f"language_model.{name}": tensor for name, tensor in untied_state(language).items()}
    with whole_folder(folder) as half:
        write_files(half, state, words, values)
        GenerationConfig(
            bos_token_id=about.start_id, eos_token_id=about.end_id, pad_token_id=about.pad_id,
            decoder_start_token_id=getattr(language.config, "decoder_start_token_id", None),
        ).save_pretrained(half)  # fmt: skip
        if tokenizer is not None:
            (half / "qformer_tokenizer").mkdir()
            tokenizer.save(str(half / "qformer_tokenizer" / TOKENIZER))


def _add_row(language: Any, size: int) -> None:
    """More words than before, the new ones the mean of the old: none of them likely."""
    before = language.get_input_embeddings().num_embeddings
    language.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for part in (language.get_input_embeddings(), language.get_output_embeddings()):
            part.weight[before:] = part.weight[:before].mean(dim=0)


def transformers_config(config: Blip2Config) -> dict[str, Any]:
    """The config.json of transformers' Blip2ForImageTextRetrieval. Raises CheckpointError as `save_transformers`."""
    return {
        "model_type": "blip-2",
        "architectures": ["Blip2ForImageTextRetrieval"],
        "image_text_hidden_size": config.embed_dim,
        "num_query_tokens": config.qformer.num_queries,
        "vision_config": {"model_type": "blip_2_vision_model", **_vision_values(config.vision)},
        "qformer_config": {
            "model_type": "blip_2_qformer",
            **_qformer_values(config.qformer, config.vision),
            "use_qformer_text_input": True,
        },
    }


def _captioner_config(config: CaptionerConfig, language: dict[str, Any], image_id: int) -> dict[str, Any]:
    """Of Blip2ForConditionalGeneration or InstructBlipForConditionalGeneration; the texts end as BLIP-2 ends them."""
    about, instruct = config.language, config.language.reads_prompt
    ends = {"bos_token_id": about.start_id, "eos_token_id": about.end_id, "pad_token_id": about.pad_id}
    kind, parts = ("instructblip", "instructblip") if instruct else ("blip-2", "blip_2")
    name = "InstructBlip" if instruct else "Blip2"
    return {
        "model_type": kind,
        "architectures": [f"{name}ForConditionalGeneration"],
        "num_query_tokens": config.qformer.num_queries,
        "image_token_index": image_id,
        "vision_config": {"model_type": f"{parts}_vision_model", **_vision_values(config.vision)},
        "qformer_config": {
            "model_type": f"{parts}_qformer",
            **_qformer_values(config.qformer, config.vision),
        },
        "text_config": language | {name: token for name, token in ends.items() if token is not None},
    }


def _vision_values(vision: VisionConfig) -> dict[str, Any]:
    if vision.timm_name != EVA or not vision.class_token or vision.final_norm:
        raise CheckpointError(
            f"transformers' BLIP-2 has EVA ViT as its image encoder, this checkpoint {vision.timm_name!r}; it cannot "
            "be written for transformers."
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


def _qformer_values(former: QFormerConfig, vision: VisionConfig) -> dict[str, Any]:
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
