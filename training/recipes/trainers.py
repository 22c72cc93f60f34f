"""Know how each kind of recipe is run, and how a dry run outlines it: one table, by the class of its settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import DataError
from engine.types import Failure
from training.capfilt.capfilt import run_capfilt
from training.capfilt.capfilt_config import CapfiltConfig, outline_capfilt
from training.stages.distillation import DistillConfig, run_distill
from training.stages.dry_run import (
    outline_captioner,
    outline_distillation,
    outline_language_model,
    outline_retriever,
    outline_stage1,
)
from training.stages.finetuning import CaptionConfig, run_finetune
from training.stages.small_language_model import TrainLanguageConfig, run_language
from training.stages.stage1 import run_stage1
from training.stages.stage1_config import Stage1Config
from training.stages.stage2 import run_stage2
from training.stages.stage2_config import Stage2Config
from training.stages.text_half import TextConfig, run_text


@dataclass(frozen=True)
class Request:
    """What a person asks of a run beside its recipe.

    data: the folder of its sets. runs: of other runs, on which it may build. output: of what it writes. teacher,
    language: of the teacher's weights and of a language model, where they are given. phase: the only one of a
    distillation to run. say: called with a line of progress.
    """

    data: Path
    runs: Path
    output: Path
    teacher: Path | None = None
    language: Path | None = None
    phase: str | None = None
    say: Callable[[str], None] = lambda line: None

    @property
    def teacher_folder(self) -> Path:
        """Raises DataError where none is given."""
        if self.teacher is None:
            raise DataError("A distillation needs --teacher: the folder of the teacher's weights.")
        return self.teacher

    @property
    def language_folder(self) -> Path:
        """Raises DataError where none is given."""
        if self.language is None:
            raise DataError(
                "Stage 2 needs --language: a transformers folder of a language model, with its tokenizer."
            )
        return self.language

    @property
    def num_processes(self) -> int:
        """How many share a batch, as torchrun says."""
        return int(os.environ.get("WORLD_SIZE", 1))


Run = Callable[[Any, Request], Sequence[Failure] | None]
"""Train by a config; return the photos that could not be read, where the run names them."""
Outline = Callable[[Any, Request], Iterator[str]]
"""Say what a run would do, in lines, without doing it."""


@dataclass(frozen=True)
class Trainer:
    """How one kind of recipe is run, and how it is outlined."""

    run: Run
    outline: Outline


TRAINERS: dict[type, Trainer] = {
    DistillConfig: Trainer(
        lambda c, at: run_distill(c, at.data, at.teacher_folder, at.output, only=at.phase, say=at.say),
        lambda c, at: outline_distillation(c),
    ),
    TextConfig: Trainer(
        lambda c, at: run_text(c, at.data, at.output, say=at.say),
        lambda c, at: outline_retriever(c.model, c.optim, num_processes=at.num_processes),
    ),
    TrainLanguageConfig: Trainer(
        lambda c, at: run_language(c, at.data, at.output, say=at.say),
        lambda c, at: outline_language_model(c),
    ),
    Stage1Config: Trainer(
        lambda c, at: run_stage1(c, at.data, at.runs, at.output, say=at.say),
        lambda c, at: outline_stage1(c, at.num_processes),
    ),
    Stage2Config: Trainer(
        lambda c, at: run_stage2(c, at.data, at.runs, at.language_folder, at.output, say=at.say),
        lambda c, at: outline_captioner(c, at.data, at.runs, at.language, at.num_processes),
    ),
    CaptionConfig: Trainer(
        lambda c, at: run_finetune(c, at.data, at.runs, at.output, say=at.say),
        lambda c, at: outline_captioner(c, at.data, at.runs, at.language, at.num_processes),
    ),
    CapfiltConfig: Trainer(
        lambda c, at: run_capfilt(c, at.data, at.runs, at.output, teacher=at.teacher, say=at.say),
        lambda c, at: outline_capfilt(c, at.data, at.runs),
    ),
}
"""The run and the outline of each kind of recipe; a subclass of a config goes by the nearest class in here."""


def find_trainer(config: object) -> Trainer:
    """Return how a recipe is run and outlined."""
    return next(TRAINERS[kind] for kind in type(config).__mro__ if kind in TRAINERS)
