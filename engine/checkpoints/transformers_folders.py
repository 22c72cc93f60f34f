"""Read the weights and the config of a folder that transformers wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.blip2.config import (
    CLIP_MEAN,
    CLIP_STD,
    EVA,
    EVA_MLP_RATIO,
    Blip2Config,
    QFormerConfig,
    VisionConfig,
)
from engine.checkpoints.checkpoint_sources import MAX_TOKENS
from engine.checkpoints.layout import CONFIG, INDEX, PICKLED, WEIGHTS, missing_file_error, read_json
from engine.checkpoints.tensors import StoredTensor, read_pickled, read_safetensors
from engine.errors import CheckpointError

TRANSFORMERS_NORM_EPS = 1e-6
"""Epsilon of every norm of the image encoder in transformers, `vision_norm` included."""


def read_transformers_tensors(folder: Path) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    """Open the tensors of a transformers folder, in one file or many; return them with these files.

    Raises CheckpointError when a file is missing, as after an incomplete download.
    """
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        try:
            names = sorted(set(index["weight_map"].values()))
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{folder / INDEX} has no weight_map. Download the folder again."
            ) from error
        files = tuple(folder / name for name in names)
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(files)} weight files ({', '.join(missing[:3])}): the download "
                "is not complete. Run it again."
            )
        merged: dict[str, StoredTensor] = {}
        for path in files:
            merged |= read_safetensors(path)
        absent = sorted(set(index["weight_map"]) - merged.keys())
        if absent:
            raise CheckpointError(
                f"The weight files in {folder} lack {absent[0]!r}, which their index names."
            )
        return merged, files
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS), (folder / WEIGHTS,)
    if (folder / PICKLED).is_file():
        return read_pickled(folder / PICKLED), (folder / PICKLED,)
    raise missing_file_error(folder, WEIGHTS)


def read_transformers_config(values: dict[str, Any], path: Path) -> Blip2Config:
    """Return our config of a transformers Blip2Config. values: its config.json. path: the folder, for messages.

    Raises CheckpointError for a config of which no network can be made here.
    """
    # This import takes seconds; it fills in what the file leaves out.
    from transformers import Blip2Config as TransformersConfig

    try:
        theirs = TransformersConfig.from_dict(values)
    except Exception as error:  # The strict dataclasses of transformers raise errors of their own kinds.
        raise CheckpointError(f"{path / CONFIG} is not a readable BLIP-2 config: {error}") from error
    vision, former = read_encoder_configs(theirs, path)
    return Blip2Config(
        vision,
        former,
        embed_dim=theirs.image_text_hidden_size,
        max_tokens=min(MAX_TOKENS, former.max_positions),
        vision_norm_eps=TRANSFORMERS_NORM_EPS,
        has_captions=False,
    )


def read_encoder_configs(theirs: Any, path: Path) -> tuple[VisionConfig, QFormerConfig]:
    """Return our configs of the image encoder and the Q-Former of a transformers Blip2Config or InstructBlipConfig.

    Raises CheckpointError for networks that cannot be made here.
    """
    vision, former = theirs.vision_config, theirs.qformer_config
    _check_supported(vision, former, path)
    args = {
        "img_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embed_dim": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "num_heads": vision.num_attention_heads,
        "mlp_ratio": compute_mlp_ratio(vision.intermediate_size, vision.hidden_size),
    }
    return VisionConfig(
        EVA,
        vision.image_size,
        vision.hidden_size,
        args,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ), QFormerConfig(
        num_layers=former.num_hidden_layers,
        width=former.hidden_size,
        num_heads=former.num_attention_heads,
        mlp_width=former.intermediate_size,
        num_queries=theirs.num_query_tokens,
        cross_attention_every=former.cross_attention_frequency,
        vocab_size=former.vocab_size,
        max_positions=former.max_position_embeddings,
        norm_eps=former.layer_norm_eps,
        dropout=former.hidden_dropout_prob,
    )


def _check_supported(vision: Any, former: Any, path: Path) -> None:
    """Raise CheckpointError for an image encoder or a Q-Former that differs from BLIP-2's."""
    if vision.hidden_act != "gelu" or former.hidden_act != "gelu" or not vision.qkv_bias:
        raise CheckpointError(
            f"{path / CONFIG}: hidden_act is {vision.hidden_act!r} and {former.hidden_act!r}, qkv_bias is "
            f"{vision.qkv_bias}; BLIP-2 has 'gelu' and True."
        )
    if vision.layer_norm_eps != TRANSFORMERS_NORM_EPS:
        raise CheckpointError(
            f"{path / CONFIG}: layer_norm_eps is {vision.layer_norm_eps}; EVA ViT has 1e-6."
        )
    if former.encoder_hidden_size != vision.hidden_size:
        raise CheckpointError(
            f"{path / CONFIG}: the Q-Former reads {former.encoder_hidden_size} channels, the image encoder gives "
            f"{vision.hidden_size}."
        )


def compute_mlp_ratio(inner: int, width: int) -> float:
    """Return the ratio of which timm makes the inner width as int(width * ratio).

    It is EVA's ratio where that fits, else one that rounding does not take below `inner`.
    """
    return EVA_MLP_RATIO if int(width * EVA_MLP_RATIO) == inner else (inner + 0.5) / width
