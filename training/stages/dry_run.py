"""Outline a training run without doing it: parameters, steps and an estimate of the memory.

Each `outline_...` function yields the lines that `qseek train ... --dry-run` prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.blip2.captioner import Captioner
from engine.blip2.config import Blip2Config, CaptionerConfig, LanguageConfig
from engine.blip2.retriever import Retriever
from engine.blip2.vision import VisionEncoder
from engine.checkpoints.language_folder import make_empty_language
from engine.errors import DataError
from training.loop.memory_estimate import (
    estimate_captioner_bytes,
    estimate_encoder_bytes,
    estimate_retriever_bytes,
    estimate_state_bytes,
)
from training.loop.optimizer import OptimConfig
from training.stages.distillation import DistillConfig
from training.stages.finetuning import CaptionConfig, open_finetuning_start
from training.stages.small_language_model import TrainLanguageConfig, make_opt
from training.stages.stage1_config import Stage1Config, check_stage1
from training.stages.stage2_config import (
    Architecture,
    Stage2Config,
    WritingConfig,
    check_writing,
    replace_image_size,
)
from training.stages.starts import open_stage2_start

GIB = 2**30


@dataclass(frozen=True)
class ParameterRow:
    """One line of the parameter table: a part of the model and its numbers of trainable and frozen parameters."""

    name: str
    trainable: int
    frozen: int


def outline_stage1(config: Stage1Config, num_processes: int = 1) -> Iterator[str]:
    """Yield the lines for stage 1 and retrieval fine-tuning: the run with all losses, then those that come before it.

    Raises TrainingError or DataError for settings that contradict each other.
    """
    check_stage1(config)
    yield from outline_retriever(
        config.model,
        config.optim,
        train_encoder=config.train_encoder,
        recompute=config.recompute_encoder,
        chunk=config.chunk,
        num_processes=num_processes,
    )
    for name, optim in (
        (f"ITC and the encoder's parts from {config.encoder_from} on", config.encoder_optim),
        ("ITC alone", config.itc_optim),
    ):
        if optim is not None:
            yield f"before it, {name}: {optim.steps:,} steps of {optim.batch:,} pairs; {format_schedule(optim)}"


def outline_retriever(
    model: Blip2Config,
    optim: OptimConfig,
    *,
    train_encoder: bool = False,
    recompute: bool = False,
    chunk: int = 0,
    num_processes: int = 1,
) -> Iterator[str]:
    """Return the lines for a run that trains a retrieval model: parameters, steps and memory.

    recompute, chunk: the settings `recompute_encoder` and `chunk` of `Stage1Config`.
    """
    net = build_meta_retriever(model, train_encoder=train_encoder)
    num_pairs = count_pairs_at_once(optim, chunk, num_processes)
    activation_bytes = estimate_retriever_bytes(
        model, num_pairs, count_patches(net), optim.dtype, train_encoder=train_encoder, recompute=recompute
    )
    return outline_network(net, optim, activation_bytes, num_processes)


def outline_captioner(
    config: WritingConfig,
    data: Path,
    runs: Path,
    language_folder: Path | None,
    num_processes: int,
) -> Iterator[str]:
    """Yield the lines for stage 2 and for fine-tuning on captions or questions.

    The recipe's architecture is counted where it names one; otherwise the model that the run starts from is opened,
    and must be there. Raises TrainingError for settings that contradict each other, and DataError and CheckpointError
    for a start that cannot be opened.
    """
    check_writing(config)
    model, language = _find_configs(config, data, runs, language_folder)
    net = build_meta_captioner(model, language, train_encoder=config.train_encoder)
    if model.language.reads_prompt:
        net.qformer.layers[-1].text_mlp.requires_grad_(False)
    num_patches = count_patches(net)
    bytes_of_pair = estimate_captioner_bytes(
        model, language, num_patches, config.max_tokens, config.optim.dtype
    )
    if config.train_encoder:
        encoder_bytes = estimate_encoder_bytes(model.vision, num_patches, recompute=config.recompute_encoder)
        bytes_of_pair += encoder_bytes * (1 if config.optim.dtype == "bfloat16" else 2)
    text_start = config.text_start if isinstance(config, CaptionConfig) and config.reads_prompt else ""
    text_branch = f", the Q-Former's text branch from {text_start}" if text_start else ""
    prompts = ", ".join(map(repr, config.prompts))
    yield f"from {config.start}{text_branch}; {model.vision.image_size} px, prompts {prompts}"
    num_pairs = count_pairs_at_once(config.optim, config.chunk, num_processes)
    yield from outline_network(net, config.optim, bytes_of_pair * num_pairs, num_processes)


def outline_language_model(config: TrainLanguageConfig) -> Iterator[str]:
    """Yield the lines for the training of a small language model: parameters and steps, without its memory."""
    with torch.device("meta"):
        net = nn.ModuleDict({"language": make_opt(config, config.vocab_size)})
    yield from format_parameter_table(net)
    optim = config.optim
    yield f"steps: {optim.steps:,} of {optim.batch:,} photos' captions; {format_schedule(optim)}"


def outline_distillation(config: DistillConfig) -> Iterator[str]:
    """Yield the lines for a distillation: the student's parameters and every phase, without the memory."""
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


def outline_network(
    net: nn.Module, optim: OptimConfig, activation_bytes: int, num_processes: int
) -> Iterator[str]:
    """Yield the parameter table of a network, a line about the steps, and a line about the memory of a process.

    activation_bytes: what a process keeps for the backward pass.
    """
    yield from format_parameter_table(net)
    share = optim.batch // num_processes
    yield (
        f"steps: {optim.steps:,} of {optim.batch:,} pairs ({share:,} a process), {optim.steps * optim.batch:,} in all; "
        f"{format_schedule(optim)}"
    )
    rows = count_parameters(net)
    everything = sum_rows(rows)
    # FSDP leaves the frozen language model whole on each process.
    unsharded = sum(row.frozen for row in rows if row.name == "language")
    num_shards = num_processes if optim.parallel == "fsdp" else 1
    sharded_bytes = estimate_state_bytes(everything.trainable, everything.frozen - unsharded, optim.dtype)
    state_bytes = sharded_bytes / num_shards + estimate_state_bytes(0, unsharded, optim.dtype)
    total, state, activations = (
        f"{size / GIB:.1f}" for size in (state_bytes + activation_bytes, state_bytes, activation_bytes)
    )
    yield (
        f"memory of a process, estimated: {total} GiB ({state} weights, gradients and moments, {activations} "
        "activations)"
    )


def format_parameter_table(net: nn.Module) -> Iterator[str]:
    """Yield the lines of a table with the parameters of each part of a network and of all of them."""
    rows = count_parameters(net)
    width = max(len(row.name) for row in rows)
    yield f"{'part':{width}}  {'trainable':>13}  {'frozen':>13}"
    for row in [*rows, sum_rows(rows)]:
        yield f"{row.name:{width}}  {row.trainable:13,}  {row.frozen:13,}"


def format_schedule(optim: OptimConfig) -> str:
    """Return warm-up, learning rates and dtype of a run in words."""
    return f"warm-up {optim.warmup:,}; learning rate {optim.lr:g} to {optim.min_lr:g}; {optim.dtype}"


def count_parameters(net: nn.Module) -> list[ParameterRow]:
    """Return a row for every direct child of a network and every parameter of its own, without those that are empty."""
    rows = [_count_row(name, list(child.parameters())) for name, child in net.named_children()]
    rows += [_count_row(name, [parameter]) for name, parameter in net.named_parameters(recurse=False)]
    return [row for row in rows if row.trainable or row.frozen]


def _count_row(name: str, parameters: Sequence[nn.Parameter]) -> ParameterRow:
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return ParameterRow(name, trainable, sum(parameter.numel() for parameter in parameters) - trainable)


def sum_rows(rows: Sequence[ParameterRow]) -> ParameterRow:
    """Return the row "all" of a parameter table."""
    return ParameterRow("all", sum(row.trainable for row in rows), sum(row.frozen for row in rows))


def count_pairs_at_once(optim: OptimConfig, chunk: int, num_processes: int) -> int:
    """Return the number of pairs whose activations a process holds at a time."""
    share = optim.batch // num_processes
    return min(chunk, share) if chunk else share


def count_patches(net: Retriever | Captioner) -> int:
    """Return the number of patches of a picture, from the shapes of a network on the meta device."""
    size = net.config.vision.image_size
    with torch.no_grad():
        return net.vision(torch.empty(1, 3, size, size, device="meta")).shape[1]


def build_meta_retriever(model: Blip2Config, *, train_encoder: bool) -> Retriever:
    """Build a retrieval model without memory for its weights, in which exactly the trained ones ask for gradients."""
    with torch.device("meta"):
        net = Retriever(model)
    net.vision.requires_grad_(train_encoder)
    return net


def build_meta_captioner(config: CaptionerConfig, language: Any, *, train_encoder: bool) -> Captioner:
    """Build a captioner without memory for its weights, in which exactly the trained ones ask for gradients.

    language: transformers' config of the language model, which is frozen.
    """
    with torch.device("meta"):
        net = Captioner(config, nn.Identity())
    net.vision.requires_grad_(train_encoder)
    net.language = make_empty_language(language, Path("the recipe")).requires_grad_(False)
    return net


def _find_configs(
    config: WritingConfig, data: Path, runs: Path, language_folder: Path | None
) -> tuple[CaptionerConfig, Any]:
    """Return our config and transformers' config of the model that a run trains."""
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


def build_recipe_configs(config: WritingConfig, model: Architecture) -> tuple[CaptionerConfig, Any]:
    """Return our config and transformers' config of the architecture that a recipe names, without reading any file."""
    from transformers import AutoConfig  # takes seconds to import

    language = AutoConfig.for_model(**model.language)
    width = getattr(language, "word_embed_proj_dim", None) or language.hidden_size
    language_config = LanguageConfig(
        bool(language.is_encoder_decoder), width, 0, None, 0, 0, config.reads_prompt
    )
    image_size = config.image_size or model.vision.image_size
    vision = replace_image_size(model.vision, image_size)
    return CaptionerConfig(vision, model.qformer, language_config), language
