"""Fine-tuning a model that writes: COCO captions (BLIP-2, section 4.2) and questions (section 4.3).

It starts from a stage-2 model, reads larger pictures (positions are interpolated) and trains the image encoder, too.
Questions also go to the Q-Former. Stage 2 has dropped the Q-Former's text branch, so that comes back from a stage-1
model; the self-attention, which both share, is stage 2's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.checkpoints.captioner_reading import read_captioner
from engine.checkpoints.checkpoint_sources import CaptionerSource, RetrieverSource
from engine.checkpoints.retrieval_reading import read_folder
from engine.datasets.captioned_sets import SourceConfig, open_training_set
from engine.datasets.question_sets import QuestionConfig, open_question_set
from engine.errors import DataError, TrainingError
from training.stages.stage2 import train_writing
from training.stages.stage2_config import WritingConfig
from training.stages.stage_setup import Say
from training.stages.starts import find_start, is_text_branch, resize_source


@dataclass(frozen=True)
class CaptionConfig(WritingConfig):
    """As `WritingConfig`; start: a stage-2 run or model.

    text_start: a retrieval model (folder, run or name) that gives the Q-Former's text branch where reads_prompt is set
    and the start has none.
    """

    sources: tuple[SourceConfig, ...]
    text_start: str = ""

    @property
    def fixed_settings(self) -> Sequence[str]:
        """As of `WritingConfig`, and where the text branch comes from."""
        return (*super().fixed_settings, "text_start")


@dataclass(frozen=True)
class VqaConfig(CaptionConfig):
    """As `CaptionConfig`, with questions. The checkpoint keeps the first prompt: `qseek caption` asks by it."""

    sources: tuple[QuestionConfig, ...]  # type: ignore[assignment]
    prompts: tuple[str, ...] = ("Question: {} Answer:",)

    @property
    def has_questions(self) -> bool:
        return True


def open_finetuning_start(config: CaptionConfig, data: Path, runs: Path) -> tuple[CaptionerSource, Path]:
    """What fine-tuning starts from, and where it lies. Raises DataError, CheckpointError and TrainingError."""
    where = find_start(config.start, data, runs)
    source = read_captioner(where)
    if config.image_size:
        source = resize_source(source, where, config.image_size)
    if config.reads_prompt and not source.config.language.reads_prompt:
        if not config.text_start:
            raise TrainingError(
                f"reads_prompt is set, but the Q-Former of {where} has no text branch: name the stage-1 run "
                "or retrieval model that it comes from (--set text_start=...), or set reads_prompt=false."
            )
        place = find_start(config.text_start, data, runs)
        source = add_text_branch(source, read_folder(place), place)
    if config.has_questions:
        language = replace(source.config.language, question=config.prompts[0])
        source = replace(source, config=replace(source.config, language=language))
    return source, where


def add_text_branch(source: CaptionerSource, texts: RetrieverSource, where: Path) -> CaptionerSource:
    """A stage-2 model whose Q-Former reads prompts, by the text branch and the vocabulary of a retrieval model.

    Raises DataError when that has a Q-Former of another shape.
    """
    theirs, own = texts.config.qformer, source.config.qformer
    former = replace(own, vocab_size=theirs.vocab_size, max_positions=theirs.max_positions)
    if replace(theirs, dropout=own.dropout) != former:
        raise DataError(
            f"{where} cannot give the text branch: its Q-Former is {theirs}, the captioning model's {own}."
        )
    tensors = {**source.tensors, **{n: t for n, t in texts.tensors.items() if is_text_branch(n)}}
    language = replace(source.config.language, reads_prompt=True)
    config = replace(source.config, qformer=former, language=language)
    return replace(source, config=config, tensors=tensors, tokenizer=texts.tokenizer)


def run_finetune(
    config: CaptionConfig, data: Path, runs: Path, output: Path, *, say: Say = lambda line: None
) -> None:
    """Fine-tuning by `config`; see `train_writing`."""
    opener = open_question_set if config.has_questions else open_training_set
    train_writing(
        config, lambda: open_finetuning_start(config, data, runs), data, runs, output, opener=opener, say=say
    )
