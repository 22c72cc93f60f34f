"""The settings of stage 2, and those that fine-tuning a model that writes shares with it (BLIP-2, 3.3, 4.2, 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.blip2.config import LanguageConfig, QFormerConfig, VisionConfig
from engine.checkpoints.checkpoint_sources import CaptionerSource
from engine.datasets.captioned_sets import SetConfig, SourceConfig
from engine.errors import DataError, TrainingError
from training.loop.optimizer import OptimConfig
from training.stages.stage_setup import check_common, refuse_settings
from training.stages.starts import is_same_encoder


@dataclass(frozen=True)
class Architecture:
    """Of a recipe's model: what a start must be, and what a dry run counts. language: of its config.json."""

    vision: VisionConfig
    qformer: QFormerConfig
    language: Mapping[str, Any]


@dataclass(frozen=True)
class WritingConfig:
    """What a model that writes learns from, and how.

    start: a model folder, run or known name. model: what it must be; none = whatever it is. image_size: pixels that
    are read, the start's when 0. prompts: one of them is drawn for each text, and a question takes the place of its
    "{}"; "" = the text alone. Captions are learned as `normalise_caption` writes them, answers as they are.
    prefix_share: of the texts that are cut in two, the beginning for the encoder, the rest for the decoder (prefix
    language modelling, for an encoder-decoder). max_tokens: see `LanguageTokenizer.pairs`; a question that does not fit
    with its answer is replaced. reads_prompt: whether the Q-Former reads the prompt, too (InstructBLIP). chunk: pairs
    of a process that are computed at a time, their gradients added up, 0 = all. Others: see `Stage1Config`.
    """

    sources: tuple[SetConfig, ...]
    optim: OptimConfig
    start: str
    model: Architecture | None = None
    image_size: int = 0
    prompts: tuple[str, ...] = ("a photo of",)
    prefix_share: float = 0.0
    max_tokens: int = 32
    reads_prompt: bool = False
    views: int = 0
    train_encoder: bool = False
    recompute_encoder: bool = False
    smallest_crop: float = 0.5
    chunk: int = 0
    compile: bool = False
    workers: int = 8

    @property
    def has_questions(self) -> bool:
        """Whether its sources hold questions."""
        return False

    @property
    def fixed_settings(self) -> Sequence[str]:
        """The settings that a resumed run must share; others are compared elsewhere, or change no loss."""
        learned = ("image_size", "prompts", "prefix_share", "max_tokens", "reads_prompt", "smallest_crop")
        return ("start", *learned, *(("views",) if self.views else ("train_encoder",)))


@dataclass(frozen=True)
class Stage2Config(WritingConfig):
    """As `WritingConfig`; start: a stage-1 run, or a retrieval model. question, repetition_penalty: see
    `LanguageConfig`."""

    sources: tuple[SourceConfig, ...]
    question: str | None = ""
    repetition_penalty: float = 1.0

    @property
    def fixed_settings(self) -> Sequence[str]:
        """As of `WritingConfig`, but none with patches: checkpoints of such runs have never held any."""
        return () if self.views else super().fixed_settings


def check_writing(config: WritingConfig) -> None:
    """Raises TrainingError for settings that contradict each other."""
    if config.views and config.has_questions:
        raise TrainingError(f"views is {config.views}, but the sources hold questions: set views to 0.")
    check_common(config)
    if not config.prompts:
        raise TrainingError('The recipe has no prompts; ("",) is none before any text.')
    if config.chunk < 0:
        raise TrainingError(f"chunk is {config.chunk}; use a number of pairs, or 0 for the whole batch.")
    for prompt in config.prompts:
        if ("{}" in prompt) != config.has_questions:
            says = (
                'has no "{}" for the question' if config.has_questions else 'has a "{}", but nothing is asked'
            )
            raise TrainingError(f"The prompt {prompt!r} {says}.")
    if config.views:
        reason = "patches are made once, before training, and the encoder stays as it is."
        refuse_settings(config, ("train_encoder", "recompute_encoder"), reason)


def check_start(config: WritingConfig, source: CaptionerSource, where: Path) -> None:
    """Raises DataError for a start that is another model than the recipe's, TrainingError for one that cannot learn
    so."""
    check_language(config, source.config.language)
    if config.model is None:
        return
    wanted, found = config.model, source.config
    size = found.vision.image_size
    former = replace(
        wanted.qformer, vocab_size=found.qformer.vocab_size, max_positions=found.qformer.max_positions
    )
    encoder = replace_image_size(found.vision, size)
    recipe_encoder = replace_image_size(wanted.vision, size)
    differing = [] if is_same_encoder(encoder, recipe_encoder) else ["vision"]
    differing += [] if found.qformer == former else ["qformer"]
    theirs = source.language.config
    differing += [
        f"the language model's {name} ({getattr(theirs, name, None)}, not {value})"
        for name, value in wanted.language.items()
        if getattr(theirs, name, None) != value
    ]
    if differing:
        raise DataError(
            f"{where} is another architecture than the recipe's: {', '.join(differing)}. `--set model=none` takes it "
            "as it is."
        )


def check_language(config: WritingConfig, language: LanguageConfig) -> None:
    """Raises TrainingError for settings that a language model cannot learn by."""
    if language.reads_prompt and not all(prompt.strip() for prompt in config.prompts):
        raise TrainingError("The Q-Former reads the prompt, and one of the recipe's prompts is empty.")
    if config.prefix_share and not language.encoder_decoder:
        raise TrainingError(
            f"prefix_share is {config.prefix_share}, but the language model is a decoder, which learns whole captions "
            "and answers; leave it at 0."
        )


def replace_image_size(vision: VisionConfig, image_size: int) -> VisionConfig:
    """The same encoder at other pixels."""
    return replace(vision, image_size=image_size, timm_args=vision.timm_args | {"img_size": image_size})
