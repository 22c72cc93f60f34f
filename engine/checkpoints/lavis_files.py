"""LAVIS .pth files, of stage 1 (retrieval) and of stage 2 (captioning), opened as sources.

LAVIS leaves out what it keeps frozen, so the image encoder's file and the language model's folder are given beside
them. Sizes are read from the tensors' shapes: a small copy of the architecture is read, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from engine.blip2.config import Blip2Config, CaptionerConfig, QFormerConfig, VisionConfig, vit_g, vit_l
from engine.checkpoints.checkpoint_sources import MAX_TOKENS, CaptionerSource, RetrieverSource
from engine.checkpoints.key_names import LAVIS, LAVIS_CAPTIONER, renamed, split_language
from engine.checkpoints.language_folder import describe_language, read_language
from engine.checkpoints.layout import with_dec
from engine.checkpoints.position_grids import POSITIONS, at_image_size, grid_side
from engine.checkpoints.retrieval_reading import refuse_generative
from engine.checkpoints.tensors import StoredTensor, read_pickled
from engine.checkpoints.transformers_folders import mlp_ratio
from engine.errors import CheckpointError

PROMPT_WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
"""LAVIS' name of the word embeddings of a Q-Former, which one that reads no text lacks."""


def read_lavis(
    path: Path, vocabulary: Tokenizer, encoder: Path | None = None, image_size: int | None = None
) -> RetrieverSource:
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
    return RetrieverSource(config, ours, with_dec(vocabulary), files)


def with_encoder(
    theirs: dict[str, StoredTensor], path: Path, encoder: Path | None
) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
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


def _lavis_encoder(path: Path) -> dict[str, StoredTensor]:
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


def lavis_configs(ours: Mapping[str, StoredTensor], path: Path) -> tuple[VisionConfig, QFormerConfig]:
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
        args |= {"embed_dim": width, "num_heads": vision_heads, "mlp_ratio": mlp_ratio(inner, width)}
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


def read_lavis_captioner(
    path: Path,
    language_folder: Path,
    *,
    vocabulary: Tokenizer | None = None,
    encoder: Path | None = None,
    image_size: int | None = None,
) -> CaptionerSource:
    """A LAVIS stage-2 or caption fine-tuned file, with the language model's transformers folder.

    vocabulary: bert-base-uncased, for a Q-Former that reads the prompt. encoder, image_size: see `read_lavis`.
    Raises CheckpointError: not such a file, no encoder, another language model than it was trained with.
    """
    theirs, words = split_language(read_pickled(path))
    _check_lavis_captioner(theirs, path, has_vocabulary=vocabulary is not None)
    theirs, files = with_encoder(theirs, path, encoder)
    ours = renamed(theirs, LAVIS_CAPTIONER)
    vision, former = lavis_configs(ours, path)
    if image_size is not None:
        vision = at_image_size(ours, vision, image_size)
    language = read_language(language_folder)
    if language.config.model_type == "t5":
        language.config.dense_act_fn = "gelu"  # LAVIS overwrites Flan-T5's approximation
    if words:
        language = replace(language, tensors=words)
    reads_prompt = "qformer.words.weight" in ours
    about = describe_language(language.config, language.tokenizer, language_folder, reads_prompt=reads_prompt)
    if "llm_proj.weight" in theirs:
        about = replace(about, start_id=about.end_id)  # LAVIS has Vicuna's texts begin with </s>, too
    width = ours["projection.weight"].shape[0]
    if width != about.width:
        raise CheckpointError(
            f"{path} was trained with a language model of width {width}; the one in {language_folder} has "
            f"{about.width}: give the one that its name says."
        )
    tokenizer = with_dec(vocabulary) if reads_prompt and vocabulary is not None else None
    config = CaptionerConfig(vision, former, about)
    return CaptionerSource(config, ours, language, tokenizer, (*files, *language.files))


def _check_lavis_captioner(theirs: Mapping[str, StoredTensor], path: Path, *, has_vocabulary: bool) -> None:
    """Raise CheckpointError for a file that is no captioner's, or whose Q-Former lacks a vocabulary for the prompt."""
    projections = {f"{name}_proj.weight" for name in ("opt", "t5", "llm")}
    if "query_tokens" not in theirs or not projections & theirs.keys():
        raise CheckpointError(
            f"{path} is no generative (stage 2) BLIP-2: it has no query_tokens, or no projection to a language model."
        )
    if PROMPT_WORDS in theirs and not has_vocabulary:
        raise CheckpointError(
            f"{path} has a Q-Former that reads the prompt; give bert-base-uncased's vocabulary with --vocabulary."
        )
