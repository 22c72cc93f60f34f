"""What a run of a model that writes would do; see `plan.py`. Distillation and small stage 2, too.

Shapes: Q queries, T tokens, D Q-Former width, P patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.blip2.captioner import Captioner
from engine.blip2.config import CaptionerConfig, LanguageConfig, QFormerConfig
from engine.blip2.vision import VisionEncoder
from engine.checkpoints.language_folder import empty_language
from engine.errors import DataError
from training.distill import DistillConfig
from training.finetune import CaptionConfig, start_finetune
from training.generative import Architecture, GenerativeConfig, at_pixels, check
from training.plan import at_once, encoder_bytes, layer_bytes, patches_of, plan_lines, table_lines
from training.stage2 import Stage2Config
from training.stage2_stream import Stage2StreamConfig, start_stage2


def meta_captioner(config: CaptionerConfig, language: Any, *, train_encoder: bool) -> Captioner:
    """The network without memory for its weights, what is trained marked as such. language: transformers' config."""
    with torch.device("meta"):
        net = Captioner(config, nn.Identity())
    net.vision.requires_grad_(train_encoder)
    net.language = empty_language(language, Path("the recipe")).requires_grad_(False)
    return net


def of_architecture(config: GenerativeConfig, model: Architecture) -> tuple[CaptionerConfig, Any]:
    """Our config and transformers' of what a recipe names, without any file."""
    from transformers import AutoConfig  # late: seconds

    language = AutoConfig.for_model(**model.language)
    width = getattr(language, "word_embed_proj_dim", None) or language.hidden_size
    about = LanguageConfig(bool(language.is_encoder_decoder), width, 0, None, 0, 0, config.reads_prompt)
    size = config.image_size or model.vision.image_size
    return CaptionerConfig(at_pixels(model.vision, size), model.qformer, about), language


def written_bytes(
    config: CaptionerConfig, language: Any, num_patches: int, max_tokens: int, dtype: str
) -> int:
    """An estimate of what Q-Former and language model keep of one pair for the backward pass.

    The language model is frozen, but the gradient goes through it to the queries: its layers count as trained ones.
    """
    double = 1 if dtype == "bfloat16" else 2
    former: QFormerConfig = config.qformer
    queries, rows = former.num_queries, former.num_queries + max_tokens
    read = rows if config.language.reads_prompt else queries
    own = former.num_layers * layer_bytes(read, former.width, former.num_heads)
    crossing = -(-former.num_layers // former.cross_attention_every)
    own += crossing * num_patches * (2 * 2 * former.width + 5 * former.num_heads * queries)
    width, heads = language.hidden_size, language.num_attention_heads
    layers = language.num_hidden_layers * layer_bytes(rows, width, heads)
    if language.is_encoder_decoder:  # the decoder's own layers, which also read the encoder's rows
        layers += language.num_hidden_layers * (
            layer_bytes(max_tokens, width, heads) + max_tokens * 5 * heads * rows
        )
    words = 3 * 4 * max_tokens * language.vocab_size // double  # logits, in float32
    return double * (own + layers + words)


def describe_generative(
    config: GenerativeConfig | Stage2Config,
    data: Path,
    runs: Path,
    language_folder: Path | None,
    processes: int,
) -> Iterator[str]:
    """The lines of `--dry-run` of stage 2, captions and questions: of the recipe's architecture, else of the start's,
    which must be there then. Raises what opening it does."""
    if isinstance(config, Stage2Config):
        config = Stage2StreamConfig(
            (), config.optim, config.start, prompts=config.prompts, max_tokens=config.max_tokens,
            reads_prompt=config.reads_prompt,
        )  # fmt: skip
    check(config)
    model, language = _models(config, data, runs, language_folder)
    net = meta_captioner(model, language, train_encoder=config.train_encoder)
    if model.language.reads_prompt:
        net.qformer.layers[-1].text_mlp.requires_grad_(False)
    patches = patches_of(net)
    one = written_bytes(model, language, patches, config.max_tokens, config.optim.dtype)
    if config.train_encoder:
        seen = encoder_bytes(model.vision, patches, recompute=config.recompute_encoder)
        one += seen * (1 if config.optim.dtype == "bfloat16" else 2)
    texts = config.text_start if isinstance(config, CaptionConfig) and config.reads_prompt else ""
    reads = f", the Q-Former's text branch from {texts}" if texts else ""
    yield f"from {config.start}{reads}; {model.vision.image_size} px, prompts {', '.join(map(repr, config.prompts))}"
    yield from plan_lines(net, config.optim, one * at_once(config.optim, config.chunk, processes), processes)


def _models(
    config: GenerativeConfig, data: Path, runs: Path, language_folder: Path | None
) -> tuple[CaptionerConfig, Any]:
    if config.model is not None:
        return of_architecture(config, config.model)
    if isinstance(config, CaptionConfig):
        source, _ = start_finetune(config, data, runs)
    else:
        assert isinstance(config, Stage2StreamConfig)
        if language_folder is None:
            raise DataError(
                "What stage 2 would do depends on the language model: give its folder with --language."
            )
        source, _ = start_stage2(config, data, runs, language_folder)
    return source.config, source.language.config


def describe_distillation(config: DistillConfig) -> Iterator[str]:
    """The student's parameters, and every phase. Its memory is not estimated."""
    with torch.device("meta"):
        net = nn.ModuleDict({"encoder": VisionEncoder(config.vision)})
    yield from table_lines(net)
    for phase in config.phases:
        optim = phase.optim
        yield (
            f"phase {phase.name}: {optim.steps:,} steps of {optim.batch:,} pictures, parts {phase.first} to "
            f"{phase.last - 1}, windows of {phase.crop}; learning rate {optim.lr:g} to {optim.min_lr:g}; {optim.dtype}"
        )
    yield "memory: not estimated; a phase trains its own parts alone, and the teacher is read beside them"
