"""Where a checkpoint comes from: our folder, a transformers folder, or LAVIS files.

Whatever the layout, a source is a config, tensors under our names that are read one at a time, and a tokenizer. Weights
are read from safetensors where there are any; a .pth or .bin file is opened with `weights_only=True`, and one that
holds anything but tensors is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor

from engine.blip2.config import (
    CLIP_MEAN,
    CLIP_STD,
    EVA,
    EVA_MLP_RATIO,
    Blip2Config,
    QFormerConfig,
    VisionConfig,
    vit_g,
    vit_l,
)
from engine.blip2.convert import LAVIS, TRANSFORMERS, Stored, renamed, resized, stored
from engine.errors import CheckpointError

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
VOCABULARY = "vocab.txt"
GENERATIVE = (
    "language_model.",
    "language_projection.",
    "opt_model.",
    "t5_model.",
    "opt_proj.",
    "t5_proj.",
    "llm_",
)
POSITIONS = "vision.backbone.pos_embed"
TRANSFORMERS_NORM_EPS = 1e-6
"""Of every norm of its image encoder, `vision_norm` too."""
MAX_TOKENS = 35
"""LAVIS' evaluation reads so many, [CLS] and [SEP] counted."""


@dataclass(frozen=True)
class Source:
    """config: what to build. tensors: under our names. tokenizer: with [DEC]. files: what decides its numbers."""

    config: Blip2Config
    tensors: Mapping[str, Stored]
    tokenizer: Tokenizer
    files: tuple[Path, ...]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def read_folder(folder: Path) -> Source:
    """A checkpoint folder, ours or transformers'. Raises CheckpointError saying what is missing or does not fit."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is no model: it has no {CONFIG}.")
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict) or "model_type" not in values:
        return _own(folder, values)
    if values["model_type"] == "instructblip":
        raise _generative(folder)
    if values["model_type"] != "blip-2":
        raise CheckpointError(
            f"{folder} holds a {values['model_type']!r} model, not BLIP-2; qseek searches with BLIP-2's retrieval "
            "checkpoints, `qseek models` lists those it knows."
        )
    return _transformers(folder, values)


def _own(folder: Path, values: Any) -> Source:
    if isinstance(values, dict) and "language" in values:
        raise _generative(folder)
    try:
        config = Blip2Config.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"In {folder}: {error}") from error
    tensors = read_safetensors(folder / WEIGHTS)
    tokenizer, vocabulary = _tokenizer(folder, config)
    return Source(config, tensors, tokenizer, (folder / CONFIG, folder / WEIGHTS, vocabulary))


def _transformers(folder: Path, values: dict[str, Any]) -> Source:
    tensors, files = transformers_tensors(folder)
    refuse_generative(tensors, folder)
    config = config_from_transformers(values, folder)
    ours = renamed(tensors, TRANSFORMERS)
    # Not in these checkpoints: the temperature decides nothing in a search, 0.07 is where BLIP-2 starts.
    ours["temperature"] = stored(torch.tensor(0.07))
    tokenizer, vocabulary = _tokenizer(folder, config)
    return Source(config, ours, tokenizer, (folder / CONFIG, *files, vocabulary))


def transformers_tensors(folder: Path) -> tuple[dict[str, Stored], tuple[Path, ...]]:
    """The tensors of a transformers folder, in one file or many, and these files. Raises CheckpointError for a download
    that is not complete."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        try:
            names = sorted(set(index["weight_map"].values()))
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{folder / INDEX} has no weight_map; download the folder again."
            ) from error
        files = tuple(folder / name for name in names)
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(files)} weight files ({', '.join(missing[:3])}): the "
                "download is not complete; run it again."
            )
        merged: dict[str, Stored] = {}
        for path in files:
            merged |= read_safetensors(path)
        absent = sorted(set(index["weight_map"]) - merged.keys())
        if absent:
            raise CheckpointError(f"The weight files in {folder} lack {absent[0]!r} that their index names.")
        return merged, files
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS), (folder / WEIGHTS,)
    if (folder / PICKLED).is_file():
        return read_pickled(folder / PICKLED), (folder / PICKLED,)
    raise _lacks(folder, WEIGHTS)


def config_from_transformers(values: dict[str, Any], where: Path) -> Blip2Config:
    """Our config of a transformers Blip2Config (its config.json). Raises CheckpointError for one we cannot build."""
    from transformers import Blip2Config as Theirs  # late: seconds; it fills in what the file leaves out

    try:
        theirs = Theirs.from_dict(values)
    except Exception as error:  # strict dataclasses raise their own kinds
        raise CheckpointError(f"{where / CONFIG} is not a readable BLIP-2 config: {error}") from error
    vision, former = encoder_configs(theirs, where)
    return Blip2Config(
        vision,
        former,
        embed_dim=theirs.image_text_hidden_size,
        max_tokens=min(MAX_TOKENS, former.max_positions),
        vision_norm_eps=TRANSFORMERS_NORM_EPS,
        has_captions=False,
    )


def encoder_configs(theirs: Any, where: Path) -> tuple[VisionConfig, QFormerConfig]:
    """Image encoder and Q-Former of a transformers Blip2Config or InstructBlipConfig. Raises CheckpointError for those
    we cannot build."""
    vision, former = theirs.vision_config, theirs.qformer_config
    if vision.hidden_act != "gelu" or former.hidden_act != "gelu" or not vision.qkv_bias:
        raise CheckpointError(
            f"{where / CONFIG}: hidden_act is {vision.hidden_act!r} and {former.hidden_act!r}, qkv_bias "
            f"{vision.qkv_bias}; BLIP-2's are 'gelu' and True."
        )
    if vision.layer_norm_eps != TRANSFORMERS_NORM_EPS:
        raise CheckpointError(
            f"{where / CONFIG}: layer_norm_eps is {vision.layer_norm_eps}; EVA ViT's is 1e-6."
        )
    if former.encoder_hidden_size != vision.hidden_size:
        raise CheckpointError(
            f"{where / CONFIG}: the Q-Former reads {former.encoder_hidden_size} channels, the image encoder gives "
            f"{vision.hidden_size}."
        )
    args = {
        "img_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embed_dim": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "num_heads": vision.num_attention_heads,
        "mlp_ratio": _mlp_ratio(vision.intermediate_size, vision.hidden_size),
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


def _mlp_ratio(inner: int, width: int) -> float:
    """timm takes int(width * ratio): EVA's own ratio where it fits, else one that no rounding takes below `inner`."""
    return EVA_MLP_RATIO if int(width * EVA_MLP_RATIO) == inner else (inner + 0.5) / width


def read_lavis(
    path: Path, vocabulary: Tokenizer, encoder: Path | None = None, image_size: int | None = None
) -> Source:
    """A LAVIS stage-1 or COCO fine-tuned file, with the frozen encoder's file where it leaves that out.

    vocabulary: bert-base-uncased. encoder: `eva_vit_g.pth` or `clip_vit_L.pth`. image_size: pixels to read photos at;
    where the file has another size its position embeddings are interpolated, as LAVIS does. Raises CheckpointError: not
    such a file, no encoder, or one that does not fit.
    """
    theirs = read_pickled(path)
    refuse_generative(theirs, path)
    if "query_tokens" not in theirs or "itm_head.weight" not in theirs:
        raise CheckpointError(
            f"{path} is no BLIP-2 retrieval checkpoint: it has no query_tokens or no itm_head.weight."
        )
    theirs, files = with_encoder(theirs, path, encoder)
    ours = renamed(theirs, LAVIS)
    vision, former = lavis_configs(ours, path)
    config = Blip2Config(
        vision,
        former,
        embed_dim=ours["photo_head.weight"].shape[0],
        max_tokens=min(MAX_TOKENS, former.max_positions),
    )
    if image_size is not None:
        config = replace(config, vision=at_image_size(ours, vision, image_size))
    return Source(config, ours, with_dec(vocabulary), files)


def with_encoder(
    theirs: dict[str, Stored], path: Path, encoder: Path | None
) -> tuple[dict[str, Stored], tuple[Path, ...]]:
    """A LAVIS file's tensors with the frozen encoder's, and the files they are from. Raises CheckpointError when there
    is none."""
    if encoder is not None:
        return theirs | _lavis_encoder(encoder), (path, encoder)
    if not any(key.startswith("visual_encoder.") for key in theirs):
        width = theirs["ln_vision.weight"].shape[0]
        name = "eva_vit_g.pth" if width == vit_g().vision.num_channels else "clip_vit_L.pth"
        raise CheckpointError(
            f"{path} leaves out the frozen image encoder ({width} channels), as LAVIS saves it; give its file with "
            f"--encoder ({name})."
        )
    return theirs, (path,)


def at_image_size(ours: dict[str, Stored], vision: VisionConfig, image_size: int) -> VisionConfig:
    """The encoder's config at other pixels; its position embeddings in `ours` are interpolated, as LAVIS does.

    Raises CheckpointError for an encoder without a grid of positions, and for pixels that its patches do not fill.
    """
    if image_size == vision.image_size:
        return vision
    side = grid_side(ours[POSITIONS].shape[1]) if POSITIONS in ours else 0
    if not side:
        raise CheckpointError(
            f"The model reads pictures of {vision.image_size} pixels, not {image_size}, and its encoder has no "
            "positions to interpolate."
        )
    patch = vision.image_size // side
    if image_size < patch or image_size % patch:
        raise CheckpointError(f"{image_size} pixels are not a multiple of the encoder's patches of {patch}.")
    is_clip = "quickgelu" in vision.timm_name
    ours[POSITIONS] = resized(ours[POSITIONS], image_size // patch, align_corners=is_clip)
    return replace(vision, image_size=image_size, timm_args=vision.timm_args | {"img_size": image_size})


def grid_side(num_positions: int) -> int:
    """Patches along one side, by the number of positions with the class token's; 0 where they are no square."""
    side = round(max(0, num_positions - 1) ** 0.5)
    return side if 1 + side * side == num_positions else 0


def _lavis_encoder(path: Path) -> dict[str, Stored]:
    """The first 39 (ViT-g) or 23 (ViT-L) blocks; what LAVIS does not use of such a file is left out."""
    bare = read_pickled(path)
    clip = "class_embedding" in bare
    depth = (vit_l() if clip else vit_g()).vision.timm_args["depth"]
    blocks = "transformer.resblocks." if clip else "blocks."
    kept = {}
    for key, tensor in bare.items():
        beyond = key.startswith(blocks) and int(key.removeprefix(blocks).split(".")[0]) >= depth
        unused = key.startswith(("ln_post", "proj", "norm.", "fc_norm.", "head."))
        if not beyond and not unused:
            kept[f"visual_encoder.{key}"] = tensor
    if not kept:
        raise CheckpointError(f"{path} is no image encoder's file: it has no tensor of one.")
    return kept


def lavis_configs(ours: Mapping[str, Stored], path: Path) -> tuple[VisionConfig, QFormerConfig]:
    """ViT-L or ViT-g, all sizes by the shapes: a small copy of the architecture is read too."""
    standard = (vit_l() if "vision.backbone.norm_pre.weight" in ours else vit_g()).vision
    depth = 1 + max(int(k.split(".")[3]) for k in ours if k.startswith("vision.backbone.blocks."))
    layers = 1 + max(int(k.split(".")[2]) for k in ours if k.startswith("qformer.layers."))
    width = ours["vision.backbone.cls_token"].shape[-1]
    side = grid_side(ours[POSITIONS].shape[1])
    if not side:
        raise CheckpointError(
            f"{path}: {ours[POSITIONS].shape[1] - 1} position embeddings are no square grid."
        )
    vision_heads = 16 if width >= 1024 else 4
    num_queries, former = ours["qformer.queries"].shape
    every = next(
        (n for n in range(1, layers + 1) if f"qformer.layers.{n}.cross_attention.query.weight" in ours),
        layers,
    )
    args = dict(standard.timm_args) | {"depth": depth, "img_size": 14 * side}
    if width != standard.num_channels:
        inner = ours["vision.backbone.blocks.0.mlp.fc1.weight"].shape[0]
        args |= {"embed_dim": width, "num_heads": vision_heads, "mlp_ratio": _mlp_ratio(inner, width)}
    qformer = QFormerConfig(
        num_layers=layers,
        width=former,
        num_heads=12 if former == 768 else 4,
        mlp_width=ours["qformer.layers.0.query_mlp.up.weight"].shape[0],
        num_queries=num_queries,
        cross_attention_every=every,
    )
    if "qformer.words.weight" in ours:  # stage 2 has no text branch
        vocab_size, max_positions = (ours[f"qformer.{n}.weight"].shape[0] for n in ("words", "positions"))
        qformer = replace(qformer, vocab_size=vocab_size, max_positions=max_positions)
    vision = replace(standard, image_size=14 * side, num_channels=width, timm_args=args)
    return vision, qformer


def refuse_generative(tensors: Mapping[str, Stored], where: Path) -> None:
    """Raises CheckpointError for a stage-2 checkpoint."""
    if any(key.startswith(GENERATIVE) for key in tensors):
        raise _generative(where)


def _generative(where: Path) -> CheckpointError:
    return CheckpointError(
        f"{where} is a generative (stage 2) BLIP-2: it has a language model and no text branch, so it cannot "
        "search; use a retrieval checkpoint such as blip2-itm-vit-g."
    )


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file, not yet read. Raises CheckpointError when it is not a whole one."""
    if not path.is_file():
        raise _lacks(path.parent, path.name)
    try:
        file = safe_open(str(path), framework="pt")
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: {error}; copy it again."
        ) from error
    return {name: Stored(shapes[name], lambda name=name: file.get_tensor(name)) for name in names}  # type: ignore[misc]


def read_pickled(path: Path) -> dict[str, Stored]:
    """The tensors of a .pth or .bin file, mapped into memory. Raises CheckpointError for anything but tensors in it."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not there.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever its readers raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} was refused: it is damaged, or holds more than tensors and could run code when read ({first})."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # LAVIS' runner keeps the optimizer and the config beside it
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items())
    ):
        raise CheckpointError(f"{path} holds no state dict of tensors.")
    return {key: stored(tensor) for key, tensor in state.items()}


def _tokenizer(folder: Path, config: Blip2Config) -> tuple[Tokenizer, Path]:
    """The folder's tokenizer and the file it is made from: tokenizer.json, or where there is none vocab.txt."""
    path = next((folder / n for n in (TOKENIZER, VOCABULARY) if (folder / n).is_file()), None)
    if path is None:
        raise _lacks(folder, TOKENIZER)
    tokenizer = read_tokenizer(path)
    if path.name == VOCABULARY or not config.has_captions:
        tokenizer = with_dec(tokenizer)
    if tokenizer.get_vocab_size() > config.qformer.vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, {CONFIG} says {config.qformer.vocab_size}."
        )
    return tokenizer, path


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json, or a vocab.txt as bert-base-uncased has it. Raises CheckpointError when it is neither."""
    is_json = path.suffix == ".json"
    try:
        if is_json:
            return Tokenizer.from_file(str(path))
        return BertWordPieceTokenizer(str(path), lowercase=True)._tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        kind = "tokenizer" if is_json else "vocabulary"
        raise CheckpointError(f"{path} is not a readable {kind}: {error}") from error


def with_dec(tokenizer: Tokenizer) -> Tokenizer:
    """[DEC] as the last token, where the vocabulary has none (LAVIS adds it to BERT's)."""
    if tokenizer.token_to_id("[DEC]") is None:
        tokenizer.add_special_tokens(["[DEC]"])
    return tokenizer


def _lacks(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{folder} has no {name}; copy the model folder again.")


def read_json(path: Path) -> Any:
    """Raises CheckpointError when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
