"""Open LAVIS' .pth files of stage 1 (retrieval) and stage 2 (captioning) as sources.

LAVIS leaves out the frozen parts, so the file of the image encoder and the folder of the language model are given
beside the .pth file. All sizes come from the shapes of the tensors, so that small copies of the architecture are read
as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from engine.blip2.config import Blip2Config, CaptionerConfig, QFormerConfig, VisionConfig, vit_g, vit_l
from engine.checkpoints.checkpoint_sources import MAX_TOKENS, CaptionerSource, RetrieverSource
from engine.checkpoints.filling import POSITIONS, change_image_size, compute_grid_side
from engine.checkpoints.key_names import LAVIS, LAVIS_CAPTIONER, rename_tensors, split_language
from engine.checkpoints.language_folder import read_language, read_language_config
from engine.checkpoints.layout import add_dec_token
from engine.checkpoints.retrieval_reading import refuse_generative
from engine.checkpoints.tensors import StoredTensor, read_pickled
from engine.checkpoints.transformers_folders import compute_mlp_ratio
from engine.errors import CheckpointError

PROMPT_WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
"""LAVIS' name of the Q-Former's word embeddings, which a Q-Former that reads no text does not have."""


def read_lavis(
    path: Path, vocabulary: Tokenizer, encoder: Path | None = None, image_size: int | None = None
) -> RetrieverSource:
    """Open a LAVIS file of stage 1, or one that was fine-tuned for retrieval on COCO.

    vocabulary: the tokenizer of bert-base-uncased. encoder: the file `eva_vit_g.pth` or `clip_vit_L.pth`, where `path`
    leaves the frozen encoder out. image_size: side of the pictures in pixels; position embeddings for another size are
    interpolated, as LAVIS does. Raises CheckpointError for another kind of file, and for an encoder that is missing or
    does not fit.
    """
    theirs = read_pickled(path)
    refuse_generative(theirs, path)
    if "query_tokens" not in theirs or "itm_head.weight" not in theirs:
        raise CheckpointError(
            f"{path} is not a BLIP-2 retrieval checkpoint: query_tokens or itm_head.weight is missing."
        )
    theirs, files = add_encoder_tensors(theirs, path, encoder)
    ours = rename_tensors(theirs, LAVIS)
    vision, former = infer_lavis_configs(ours, path)
    config = Blip2Config(
        vision,
        former,
        embed_dim=ours["photo_head.weight"].shape[0],
        max_tokens=min(MAX_TOKENS, former.max_positions),
    )
    if image_size is not None:
        config = replace(config, vision=change_image_size(ours, vision, image_size))
    return RetrieverSource(config, ours, add_dec_token(vocabulary), files)


def add_encoder_tensors(
    theirs: dict[str, StoredTensor], path: Path, encoder: Path | None
) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    """Return the tensors of a LAVIS file together with those of the frozen encoder, and the files of both.

    Raises CheckpointError when there is no encoder.
    """
    if encoder is not None:
        return theirs | _read_lavis_encoder(encoder), (path, encoder)
    if not any(key.startswith("visual_encoder.") for key in theirs):
        width = theirs["ln_vision.weight"].shape[0]
        name = "eva_vit_g.pth" if width == vit_g().vision.num_channels else "clip_vit_L.pth"
        raise CheckpointError(
            f"{path} does not hold the frozen image encoder ({width} channels), which LAVIS leaves out. Give its file "
            f"({name}) with --encoder."
        )
    return theirs, (path,)


def _read_lavis_encoder(path: Path) -> dict[str, StoredTensor]:
    """Read the tensors of an encoder's file that LAVIS uses: the first 39 (ViT-g) or 23 (ViT-L) blocks and the stem."""
    bare = read_pickled(path)
    clip = "class_embedding" in bare
    depth = (vit_l() if clip else vit_g()).vision.timm_args["depth"]
    blocks = "transformer.resblocks." if clip else "blocks."
    used = {}
    for key, tensor in bare.items():
        is_late_block = key.startswith(blocks) and int(key.removeprefix(blocks).split(".")[0]) >= depth
        is_unused = key.startswith(("ln_post", "proj", "norm.", "fc_norm.", "head."))
        if not is_late_block and not is_unused:
            used[f"visual_encoder.{key}"] = tensor
    if not used:
        raise CheckpointError(f"{path} is not an image encoder's file: it holds no tensor of one.")
    return used


def infer_lavis_configs(ours: Mapping[str, StoredTensor], path: Path) -> tuple[VisionConfig, QFormerConfig]:
    """Return the configs of encoder and Q-Former: ViT-L or ViT-g by the names of tensors, all sizes by their shapes.

    path: the file, for messages.
    """
    standard = (vit_l() if "vision.backbone.norm_pre.weight" in ours else vit_g()).vision
    depth = 1 + max(int(k.split(".")[3]) for k in ours if k.startswith("vision.backbone.blocks."))
    layers = 1 + max(int(k.split(".")[2]) for k in ours if k.startswith("qformer.layers."))
    width = ours["vision.backbone.cls_token"].shape[-1]
    side = compute_grid_side(ours[POSITIONS].shape[1])
    if not side:
        raise CheckpointError(
            f"{path}: {ours[POSITIONS].shape[1] - 1} position embeddings do not form a square grid."
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
        args |= {"embed_dim": width, "num_heads": vision_heads, "mlp_ratio": compute_mlp_ratio(inner, width)}
    qformer = QFormerConfig(
        num_layers=layers,
        width=former,
        num_heads=12 if former == 768 else 4,
        mlp_width=ours["qformer.layers.0.query_mlp.up.weight"].shape[0],
        num_queries=num_queries,
        cross_attention_every=every,
    )
    if "qformer.words.weight" in ours:  # Stage 2 has no text branch.
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
    """Open a LAVIS file of stage 2, or one that was fine-tuned for captions, with its language model.

    language_folder: the transformers folder of the language model. vocabulary: the tokenizer of bert-base-uncased, for
    a Q-Former that reads the prompt. encoder, image_size: see `read_lavis`. Raises CheckpointError for another kind of
    file, for a missing encoder, and for another language model than the file was trained with.
    """
    theirs, language_tensors = split_language(read_pickled(path))
    _check_lavis_captioner(theirs, path, has_vocabulary=vocabulary is not None)
    theirs, files = add_encoder_tensors(theirs, path, encoder)
    ours = rename_tensors(theirs, LAVIS_CAPTIONER)
    vision, former = infer_lavis_configs(ours, path)
    if image_size is not None:
        vision = change_image_size(ours, vision, image_size)
    language = read_language(language_folder)
    if language.config.model_type == "t5":
        language.config.dense_act_fn = "gelu"  # LAVIS replaces Flan-T5's approximation.
    if language_tensors:
        language = replace(language, tensors=language_tensors)
    reads_prompt = "qformer.words.weight" in ours
    language_config = read_language_config(
        language.config, language.tokenizer, language_folder, reads_prompt=reads_prompt
    )
    if "llm_proj.weight" in theirs:
        # In LAVIS, the texts of Vicuna begin with </s> as well.
        language_config = replace(language_config, start_id=language_config.end_id)
    width = ours["projection.weight"].shape[0]
    if width != language_config.width:
        raise CheckpointError(
            f"{path} was trained with a language model of width {width}; the one in {language_folder} has width "
            f"{language_config.width}. Give the one that its name says."
        )
    tokenizer = add_dec_token(vocabulary) if reads_prompt and vocabulary is not None else None
    config = CaptionerConfig(vision, former, language_config)
    return CaptionerSource(config, ours, language, tokenizer, (*files, *language.files))


def _check_lavis_captioner(theirs: Mapping[str, StoredTensor], path: Path, *, has_vocabulary: bool) -> None:
    """Raise CheckpointError for a file that is no captioner, or whose Q-Former lacks a vocabulary for the prompt."""
    projections = {f"{name}_proj.weight" for name in ("opt", "t5", "llm")}
    if "query_tokens" not in theirs or not projections & theirs.keys():
        raise CheckpointError(
            f"{path} is not a captioner (BLIP-2 stage 2): query_tokens is missing, or the projection to a language "
            "model."
        )
    if PROMPT_WORDS in theirs and not has_vocabulary:
        raise CheckpointError(
            f"{path} has a Q-Former that reads the prompt. Give the vocabulary of bert-base-uncased with --vocabulary."
        )
