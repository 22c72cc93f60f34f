"""Say what a training run would do without doing it: parameters, steps and an estimate of the memory.

Shapes: B pairs of a process, P patches, V vision width, Q queries, T tokens, D Q-Former width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.blip2.captioner import Captioner
from engine.blip2.config import Blip2Config, CaptionerConfig, LanguageConfig, QFormerConfig, VisionConfig
from engine.blip2.retriever import Retriever
from engine.blip2.vision import VisionEncoder
from engine.checkpoints.language_folder import empty_language
from engine.errors import DataError
from training.loop.optimizer import OptimConfig
from training.stages.distillation import DistillConfig
from training.stages.finetuning import CaptionConfig, open_finetuning_start
from training.stages.small_language_model import TrainLanguageConfig, make_opt
from training.stages.stage1_config import Stage1Config, check_stage1
from training.stages.stage2 import open_stage2_start
from training.stages.stage2_config import (
    Architecture,
    Stage2Config,
    WritingConfig,
    check_writing,
    replace_image_size,
)

GIB = 2**30


@dataclass(frozen=True)
class ParameterRow:
    """name: of a part of the model. trainable, frozen: numbers of parameters."""

    name: str
    trainable: int
    frozen: int


def count_parameters(net: nn.Module) -> list[ParameterRow]:
    """Every direct child of a network, and parameters of its own, in order."""
    parts = [
        ParameterRow(
            name,
            *(sum(p.numel() for p in child.parameters() if p.requires_grad is on) for on in (True, False)),
        )
        for name, child in net.named_children()
    ]
    parts += [
        ParameterRow(name, p.numel() * p.requires_grad, p.numel() * (not p.requires_grad))
        for name, p in net.named_parameters(recurse=False)
    ]
    return [part for part in parts if part.trainable or part.frozen]


def build_meta_retriever(model: Blip2Config, *, train_encoder: bool) -> Retriever:
    """The network without memory for its weights, what is trained marked as such."""
    with torch.device("meta"):
        net = Retriever(model)
    net.vision.requires_grad_(train_encoder)
    return net


def estimate_state_bytes(trainable: int, frozen: int, dtype: str) -> int:
    """Weights, gradients and AdamW's two moments; in bfloat16 also the float32 masters and their gradients."""
    if dtype == "bfloat16":
        return trainable * (2 + 2 + 4 + 4 + 8) + frozen * 2
    return trainable * (4 + 4 + 8) + frozen * 4


def estimate_retriever_bytes(
    model: Blip2Config, batch: int, num_patches: int, dtype: str, *, train_encoder: bool, recompute: bool
) -> int:
    """An estimate of what is kept for the backward pass of B pairs.

    A transformer layer of width d and a heads keeps about s (34 d + 5 a s) bytes in 16 bit for s rows
    (arXiv:2205.05198, section 4.1). Texts count with the longest that the model reads.
    """
    double = 1 if dtype == "bfloat16" else 2

    former, vision = model.qformer, model.vision
    queries, tokens = former.num_queries, model.max_tokens
    # ITC reads queries and text apart, ITM three pairs, ITG the text once more.
    passes = [queries, tokens, *[queries + tokens] * 3, tokens]
    own = former.num_layers * sum(
        estimate_layer_bytes(rows, former.width, former.num_heads) for rows in passes
    )
    crossing = -(-former.num_layers // former.cross_attention_every)
    # Keys and values of the photo and of its two stand-ins, and the scores of four passes over it.
    own += crossing * num_patches * (3 * 2 * 2 * former.width + 4 * 5 * former.num_heads * queries)
    words = 3 * 4 * tokens * former.vocab_size // double  # ITG's logits, in float32
    seen = estimate_encoder_bytes(vision, num_patches, recompute=recompute) if train_encoder else 0
    return batch * double * (own + words + seen)


def estimate_layer_bytes(rows: int, width: int, heads: int) -> int:
    """What a transformer layer keeps of so many rows, in 16 bit."""
    return rows * (34 * width + 5 * heads * rows)


def estimate_encoder_bytes(vision: VisionConfig, num_patches: int, *, recompute: bool) -> int:
    """What a trained encoder keeps of a picture."""
    heads, depth = read_heads_and_depth(vision.timm_args, vision.num_channels)
    one = estimate_layer_bytes(num_patches, vision.num_channels, heads)
    kept = 2 * num_patches * vision.num_channels
    return depth * kept + one if recompute else depth * one


def read_heads_and_depth(timm_args: dict[str, Any], width: int) -> tuple[int, int]:
    """Heads and depth of a ViT: as its arguments say, else heads 64 wide (88 in ViT-g)."""
    return timm_args.get("num_heads", width // (88 if width == 1408 else 64)), timm_args.get("depth", 12)


def format_schedule(optim: OptimConfig) -> str:
    return f"warm-up {optim.warmup:,}; learning rate {optim.lr:g} to {optim.min_lr:g}; {optim.dtype}"


def outline_stage1(config: Stage1Config, num_processes: int = 1) -> Iterator[str]:
    """The lines of `--dry-run`: the run with all losses, and those before it. Raises as `check_stage1` does."""
    check_stage1(config)
    yield from outline_retriever(
        config.model, config.optim, train_encoder=config.train_encoder, recompute=config.recompute_encoder,
        chunk=config.chunk, num_processes=num_processes,
    )  # fmt: skip
    for name, optim in (
        (f"ITC and the encoder's parts from {config.encoder_from} on", config.encoder_optim),
        ("ITC alone", config.itc_optim),
    ):
        if optim is not None:
            yield f"before it, {name}: {optim.steps:,} steps of {optim.batch:,} pairs; {format_schedule(optim)}"


def outline_language_model(config: TrainLanguageConfig) -> Iterator[str]:
    """Of a language model that is trained. Its memory is not estimated."""
    with torch.device("meta"):
        net = nn.ModuleDict({"language": make_opt(config, config.vocab_size)})
    yield from format_parameter_table(net)
    optim = config.optim
    yield f"steps: {optim.steps:,} of {optim.batch:,} photos' captions; {format_schedule(optim)}"


def outline_retriever(
    model: Blip2Config, optim: OptimConfig, *, train_encoder: bool = False, recompute: bool = False, chunk: int = 0,
    num_processes: int = 1,
) -> Iterator[str]:  # fmt: skip
    """The lines of `--dry-run`."""
    net = build_meta_retriever(model, train_encoder=train_encoder)
    num_pairs = count_pairs_at_once(optim, chunk, num_processes)
    kept = estimate_retriever_bytes(
        model, num_pairs, count_patches(net), optim.dtype, train_encoder=train_encoder, recompute=recompute
    )
    return outline_network(net, optim, kept, num_processes)


def count_pairs_at_once(optim: OptimConfig, chunk: int, num_processes: int) -> int:
    """Pairs whose activations a process holds at a time."""
    share = optim.batch // num_processes
    return min(chunk, share) if chunk else share


def outline_network(net: nn.Module, optim: OptimConfig, kept: int, num_processes: int) -> Iterator[str]:
    """Parameters by part, steps, memory. kept: bytes of activations."""
    yield from format_parameter_table(net)
    share = optim.batch // num_processes
    yield (
        f"steps: {optim.steps:,} of {optim.batch:,} pairs ({share:,} a process), {optim.steps * optim.batch:,} in all; "
        f"{format_schedule(optim)}"
    )
    parts = count_parameters(net)
    trainable, frozen = (sum(getattr(part, kind) for part in parts) for kind in ("trainable", "frozen"))
    whole = sum(part.frozen for part in parts if part.name == "language")  # FSDP leaves it as it is
    split = num_processes if optim.parallel == "fsdp" else 1
    fixed = estimate_state_bytes(trainable, frozen - whole, optim.dtype) / split + estimate_state_bytes(
        0, whole, optim.dtype
    )
    yield (
        f"memory of a process, estimated: {(fixed + kept) / GIB:.1f} GiB ({fixed / GIB:.1f} weights, gradients and "
        f"moments, {kept / GIB:.1f} activations)"
    )


def format_parameter_table(net: nn.Module) -> Iterator[str]:
    """The parameter table."""
    parts = count_parameters(net)
    trainable, frozen = (sum(getattr(part, kind) for part in parts) for kind in ("trainable", "frozen"))
    width = max(len(part.name) for part in parts)
    yield f"{'part':{width}}  {'trainable':>13}  {'frozen':>13}"
    for part in [*parts, ParameterRow("all", trainable, frozen)]:
        yield f"{part.name:{width}}  {part.trainable:13,}  {part.frozen:13,}"


def count_patches(net: Retriever | Captioner) -> int:
    """P, from the shapes alone."""
    size = net.config.vision.image_size
    with torch.no_grad():
        return net.vision(torch.empty(1, 3, size, size, device="meta")).shape[1]


def build_meta_captioner(config: CaptionerConfig, language: Any, *, train_encoder: bool) -> Captioner:
    """The network without memory for its weights, what is trained marked as such. language: transformers' config."""
    with torch.device("meta"):
        net = Captioner(config, nn.Identity())
    net.vision.requires_grad_(train_encoder)
    net.language = empty_language(language, Path("the recipe")).requires_grad_(False)
    return net


def build_recipe_configs(config: WritingConfig, model: Architecture) -> tuple[CaptionerConfig, Any]:
    """Our config and transformers' of what a recipe names, without any file."""
    from transformers import AutoConfig  # late: seconds

    language = AutoConfig.for_model(**model.language)
    width = getattr(language, "word_embed_proj_dim", None) or language.hidden_size
    about = LanguageConfig(bool(language.is_encoder_decoder), width, 0, None, 0, 0, config.reads_prompt)
    size = config.image_size or model.vision.image_size
    return CaptionerConfig(replace_image_size(model.vision, size), model.qformer, about), language


def estimate_captioner_bytes(
    config: CaptionerConfig, language: Any, num_patches: int, max_tokens: int, dtype: str
) -> int:
    """An estimate of what Q-Former and language model keep of one pair for the backward pass.

    The language model is frozen, but the gradient goes through it to the queries: its layers count as trained ones.
    """
    double = 1 if dtype == "bfloat16" else 2
    former: QFormerConfig = config.qformer
    queries, rows = former.num_queries, former.num_queries + max_tokens
    read = rows if config.language.reads_prompt else queries
    own = former.num_layers * estimate_layer_bytes(read, former.width, former.num_heads)
    crossing = -(-former.num_layers // former.cross_attention_every)
    own += crossing * num_patches * (2 * 2 * former.width + 5 * former.num_heads * queries)
    width, heads = language.hidden_size, language.num_attention_heads
    layers = language.num_hidden_layers * estimate_layer_bytes(rows, width, heads)
    if language.is_encoder_decoder:  # the decoder's own layers, which also read the encoder's rows
        layers += language.num_hidden_layers * (
            estimate_layer_bytes(max_tokens, width, heads) + max_tokens * 5 * heads * rows
        )
    words = 3 * 4 * max_tokens * language.vocab_size // double  # logits, in float32
    return double * (own + layers + words)


def outline_captioner(
    config: WritingConfig,
    data: Path,
    runs: Path,
    language_folder: Path | None,
    num_processes: int,
) -> Iterator[str]:
    """The lines of `--dry-run` of stage 2, captions and questions: of the recipe's architecture, else of the start's,
    which must be there then. Raises what opening it does."""
    check_writing(config)
    model, language = _models(config, data, runs, language_folder)
    net = build_meta_captioner(model, language, train_encoder=config.train_encoder)
    if model.language.reads_prompt:
        net.qformer.layers[-1].text_mlp.requires_grad_(False)
    patches = count_patches(net)
    one = estimate_captioner_bytes(model, language, patches, config.max_tokens, config.optim.dtype)
    if config.train_encoder:
        seen = estimate_encoder_bytes(model.vision, patches, recompute=config.recompute_encoder)
        one += seen * (1 if config.optim.dtype == "bfloat16" else 2)
    texts = config.text_start if isinstance(config, CaptionConfig) and config.reads_prompt else ""
    reads = f", the Q-Former's text branch from {texts}" if texts else ""
    yield f"from {config.start}{reads}; {model.vision.image_size} px, prompts {', '.join(map(repr, config.prompts))}"
    yield from outline_network(
        net, config.optim, one * count_pairs_at_once(config.optim, config.chunk, num_processes), num_processes
    )


def _models(
    config: WritingConfig, data: Path, runs: Path, language_folder: Path | None
) -> tuple[CaptionerConfig, Any]:
    if config.model is not None:
        return build_recipe_configs(config, config.model)
    if isinstance(config, CaptionConfig):
        source, _ = open_finetuning_start(config, data, runs)
    else:
        assert isinstance(config, Stage2Config)
        if language_folder is None:
            raise DataError(
                "What stage 2 would do depends on the language model: give its folder with --language."
            )
        source, _ = open_stage2_start(config, data, runs, language_folder)
    return source.config, source.language.config


def outline_distillation(config: DistillConfig) -> Iterator[str]:
    """The student's parameters, and every phase. Its memory is not estimated."""
    with torch.device("meta"):
        net = nn.ModuleDict({"encoder": VisionEncoder(config.vision)})
    yield from format_parameter_table(net)
    for phase in config.phases:
        optim = phase.optim
        yield (
            f"phase {phase.name}: {optim.steps:,} steps of {optim.batch:,} pictures, parts {phase.first} to "
            f"{phase.last - 1}, windows of {phase.crop}; learning rate {optim.lr:g} to {optim.min_lr:g}; {optim.dtype}"
        )
    yield "memory: not estimated; a phase trains its own parts alone, and the teacher is read beside them"
