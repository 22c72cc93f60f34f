"""The settings of stage 2, and those that it shares with fine-tuning on captions or questions (BLIP-2, 3.3, 4.2,
4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.blip2.config import QFormerConfig, VisionConfig
from engine.datasets.captioned_sets import SetConfig, SourceConfig
from engine.errors import TrainingError
from training.loop.optimizer import OptimConfig
from training.stages.stage_setup import check_common, refuse_settings


@dataclass(frozen=True)
class Architecture:
    """The architecture of a recipe's model: a start must have it, and a dry run counts its parameters.

    language: settings of the language model's config.json.
    """

    vision: VisionConfig
    qformer: QFormerConfig
    language: Mapping[str, Any]


@dataclass(frozen=True)
class WritingConfig:
    """The settings with which a captioner is trained.

    sources: the training sets. start: a model folder, a run, or a model by name. model: the architecture that the start
    must have; with None it may have any. image_size: pixels of the pictures that are read, 0 for those of the start.
    prompts: one of them is drawn for each text; a question takes the place of "{}", and "" is no prompt. Captions are
    learned as `normalise_caption` writes them, answers as they are.
    prefix_share: the share of the texts that are cut in two; the beginning goes to the encoder and the rest to the
    decoder of an encoder-decoder (prefix language modelling). max_tokens: see `LanguageTokenizer.encode_pairs`; a
    question that does not fit together with its answer is replaced by another.
    reads_prompt: whether the Q-Former also reads the prompt (InstructBLIP). chunk: number of pairs that a process
    computes at a time, 0 for all; the gradients of the chunks are added up.
    `Stage1Config` explains the other settings.
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
        """Return whether the training sets hold questions."""
        return False

    @property
    def fixed_settings(self) -> Sequence[str]:
        """Return the names of the settings that a resumed run must share.

        The other settings are compared elsewhere, or change no loss.
        """
        learned = ("image_size", "prompts", "prefix_share", "max_tokens", "reads_prompt", "smallest_crop")
        return ("start", *learned, *(("views",) if self.views else ("train_encoder",)))


@dataclass(frozen=True)
class Stage2Config(WritingConfig):
    """The settings of stage 2: those of `WritingConfig` and two that the captioner keeps for writing.

    start: a stage-1 run, or a retrieval model. question, repetition_penalty: see `LanguageConfig`.
    """

    sources: tuple[SourceConfig, ...]
    question: str | None = ""
    repetition_penalty: float = 1.0

    @property
    def fixed_settings(self) -> Sequence[str]:
        """Return the names of the settings that a resumed run must share.

        There are none with patches that are made once: checkpoints of such runs have never held any.
        """
        return () if self.views else super().fixed_settings


def check_writing(config: WritingConfig) -> None:
    """Check the settings of a captioner's training. Raises TrainingError for those that contradict each other."""
    if config.views and config.has_questions:
        raise TrainingError(f"views is {config.views}, but the sets hold questions: set views to 0.")
    check_common(config)
    if not config.prompts:
        raise TrainingError(
            'The recipe has no prompts. To learn texts without a prompt, set prompts to [""].'
        )
    if config.chunk < 0:
        raise TrainingError(f"chunk is {config.chunk}; use a number of pairs, or 0 for the whole batch.")
    for prompt in config.prompts:
        has_place = "{}" in prompt
        if config.has_questions and not has_place:
            raise TrainingError(f'The prompt {prompt!r} has no "{{}}" for the question.')
        if has_place and not config.has_questions:
            raise TrainingError(f'The prompt {prompt!r} has a "{{}}", but the sets hold no questions.')
    if config.views:
        reason = "patches are made once, before training, and the encoder stays as it is."
        refuse_settings(config, ("train_encoder", "recompute_encoder"), reason)


def replace_image_size(vision: VisionConfig, image_size: int) -> VisionConfig:
    """Return the config of an image encoder that reads pictures of `image_size` pixels."""
    return replace(vision, image_size=image_size, timm_args=vision.timm_args | {"img_size": image_size})
