"""Stage 2 on sets of any size: a stage-1 model before a frozen language model (BLIP-2, section 3.3).

Small sets, whose patches are made once: `stage2.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from engine.blip2.config import CaptionerConfig, LanguageConfig
from engine.checkpoints.checkpoint_sources import CaptionerSource, LanguageSource, RetrieverSource
from engine.checkpoints.language_folder import describe_language, read_language
from engine.checkpoints.retrieval_reading import read_folder
from engine.checkpoints.tensors import StoredTensor, stored
from engine.datasets.captioned_sets import SourceConfig
from training.stages.generative import GenerativeConfig, train_generative
from training.stages.stage_setup import Say
from training.stages.starts import at_size, find_start


@dataclass(frozen=True)
class Stage2StreamConfig(GenerativeConfig):
    """As `GenerativeConfig`; start: a stage-1 run, or a retrieval model."""

    sources: tuple[SourceConfig, ...]


def text_branch(name: str) -> bool:
    """Whether a tensor of a retrieval model's Q-Former serves its texts alone."""
    return name.startswith(("qformer.words.", "qformer.positions.")) or ".text_mlp." in name


def before_language(
    source: RetrieverSource, language: LanguageSource, where: Path, *, reads_prompt: bool
) -> CaptionerSource:
    """A stage-1 model's encoder, queries and Q-Former before a language model, with a new projection, drawn now.

    Without its heads, and without its text branch unless the Q-Former reads the prompt.
    """
    about: LanguageConfig = describe_language(
        language.config, language.tokenizer, where, reads_prompt=reads_prompt
    )
    config = CaptionerConfig(
        source.config.vision, source.config.qformer, about, source.config.vision_norm_eps
    )
    tensors: dict[str, StoredTensor] = {
        name: tensor
        for name, tensor in source.tensors.items()
        if name.startswith(("vision.", "vision_norm.", "qformer."))
        and (reads_prompt or not text_branch(name))
    }
    projection = nn.Linear(config.qformer.width, about.width)
    tensors |= {f"projection.{name}": stored(value) for name, value in projection.state_dict().items()}
    return CaptionerSource(
        config, tensors, language, source.tokenizer if reads_prompt else None, language.files
    )


def start_stage2(
    config: Stage2StreamConfig, data: Path, runs: Path, language_folder: Path
) -> tuple[CaptionerSource, Path]:
    """What stage 2 starts from, and where its stage-1 model lies. Raises DataError and CheckpointError."""
    where = find_start(config.start, data, runs)
    source = read_folder(where)
    if config.image_size:
        source = at_size(source, where, config.image_size)
    torch.manual_seed(config.optim.seed)
    language = read_language(language_folder)
    return before_language(source, language, language_folder, reads_prompt=config.reads_prompt), where


def run_stage2_stream(
    config: Stage2StreamConfig, data: Path, runs: Path, language_folder: Path, output: Path, *,
    say: Say = lambda line: None,
) -> None:  # fmt: skip
    """Stage 2 by `config`; see `train_generative`. language_folder: a transformers folder with a tokenizer."""
    train_generative(config, lambda: start_stage2(config, data, runs, language_folder), data, output, say=say)
