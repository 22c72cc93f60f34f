"""Choose the functions that run a recipe and outline it: one table, by the class of the recipe's settings."""

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
    """The request to a run, in addition to its recipe.

    data: the folder of the sets. runs: the folder of other runs, from which this one may start. output: the folder that
    this run writes. teacher: the folder of the teacher's weights, if given. language: the folder of a language model,
    if given. phase: the only phase of a distillation to run, if given. say: is called with each line of progress.
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
        """Return the folder of the teacher's weights. Raises DataError if none is given."""
        if self.teacher is None:
            raise DataError("A distillation needs --teacher: the folder of the teacher's weights.")
        return self.teacher

    @property
    def language_folder(self) -> Path:
        """Return the folder of the language model. Raises DataError if none is given."""
        if self.language is None:
            raise DataError(
                "Stage 2 needs --language: a transformers folder of a language model, with its tokenizer."
            )
        return self.language

    @property
    def num_processes(self) -> int:
        """Return how many processes share a batch, as torchrun says in WORLD_SIZE."""
        return int(os.environ.get("WORLD_SIZE", 1))


Run = Callable[[Any, Request], Sequence[Failure] | None]
"""A function that trains by a config. It returns the photos that could not be read, where the run names them."""
Outline = Callable[[Any, Request], Iterator[str]]
"""A function that yields lines about what a run would do, without doing it."""


@dataclass(frozen=True)
class Trainer:
    """The two functions for one kind of recipe: `run` carries it out, `outline` only says what would happen."""

    run: Run
    outline: Outline


TRAINERS: dict[type, Trainer] = {
    DistillConfig: Trainer(
        lambda config, request: run_distill(
            config, request.data, request.teacher_folder, request.output, only=request.phase, say=request.say
        ),
        lambda config, request: outline_distillation(config),
    ),
    TextConfig: Trainer(
        lambda config, request: run_text(config, request.data, request.output, say=request.say),
        lambda config, request: outline_retriever(
            config.model, config.optim, num_processes=request.num_processes
        ),
    ),
    TrainLanguageConfig: Trainer(
        lambda config, request: run_language(config, request.data, request.output, say=request.say),
        lambda config, request: outline_language_model(config),
    ),
    Stage1Config: Trainer(
        lambda config, request: run_stage1(
            config, request.data, request.runs, request.output, say=request.say
        ),
        lambda config, request: outline_stage1(config, request.num_processes),
    ),
    Stage2Config: Trainer(
        lambda config, request: run_stage2(
            config, request.data, request.runs, request.language_folder, request.output, say=request.say
        ),
        lambda config, request: outline_captioner(
            config, request.data, request.runs, request.language, request.num_processes
        ),
    ),
    CaptionConfig: Trainer(
        lambda config, request: run_finetune(
            config, request.data, request.runs, request.output, say=request.say
        ),
        lambda config, request: outline_captioner(
            config, request.data, request.runs, request.language, request.num_processes
        ),
    ),
    CapfiltConfig: Trainer(
        lambda config, request: run_capfilt(
            config, request.data, request.runs, request.output, teacher=request.teacher, say=request.say
        ),
        lambda config, request: outline_capfilt(config, request.data, request.runs),
    ),
}
"""The trainer of each class of settings. A subclass that is not in the table uses its nearest base class."""


def find_trainer(config: object) -> Trainer:
    """Return the trainer of a recipe's settings."""
    return next(TRAINERS[base] for base in type(config).__mro__ if base in TRAINERS)
