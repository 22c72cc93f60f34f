"""A checkpoint as a folder that transformers loads (Blip2ForImageTextRetrieval.from_pretrained)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from engine.blip2.checkpoint import write_folder
from engine.blip2.config import EVA, EVA_MLP_RATIO, Blip2Config
from engine.blip2.convert import to_transformers
from engine.blip2.retriever import Retriever
from engine.errors import CheckpointError

EVA_GIANT = {"patch_size": 14, "embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": EVA_MLP_RATIO}
"""What timm's architecture is where `timm_args` do not say."""


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


def transformers_config(config: Blip2Config) -> dict[str, Any]:
    """The config.json of transformers' Blip2ForImageTextRetrieval. Raises CheckpointError as `save_transformers`."""
    vision, former = config.vision, config.qformer
    if vision.timm_name != EVA or not vision.class_token or vision.final_norm:
        raise CheckpointError(
            f"transformers' BLIP-2 has EVA ViT as its image encoder, this checkpoint {vision.timm_name!r}; it cannot "
            "be written for transformers."
        )
    args = EVA_GIANT | vision.timm_args
    return {
        "model_type": "blip-2",
        "architectures": ["Blip2ForImageTextRetrieval"],
        "image_text_hidden_size": config.embed_dim,
        "num_query_tokens": former.num_queries,
        "vision_config": {
            "model_type": "blip_2_vision_model",
            "hidden_size": vision.num_channels,
            "intermediate_size": int(vision.num_channels * args["mlp_ratio"]),
            "num_hidden_layers": args["depth"],
            "num_attention_heads": args["num_heads"],
            "image_size": vision.image_size,
            "patch_size": args["patch_size"],
            "layer_norm_eps": 1e-6,
        },
        "qformer_config": {
            "model_type": "blip_2_qformer",
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
            "use_qformer_text_input": True,
        },
    }
