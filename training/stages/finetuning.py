"""Fine-tune a captioner on COCO captions (BLIP-2, section 4.2) or on questions (section 4.3).

Fine-tuning starts from a stage-2 model, reads larger pictures (position embeddings are interpolated) and also trains
the image encoder. The Q-Former reads questions, too. Stage 2 has dropped the Q-Former's text branch, so the branch
comes back from a stage-1 model; the self-attention, which texts and queries share, is stage 2's.
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
from training.stages.stage2 import train_captioner
from training.stages.stage2_config import WritingConfig
from training.stages.stage_setup import Say
from training.stages.starts import find_start, is_text_branch, resize_source


@dataclass(frozen=True)
class CaptionConfig(WritingConfig):
    """The settings for fine-tuning on captions: those of `WritingConfig` and one more.

    start: a stage-2 run, or a captioner. text_start: a retrieval model (folder, run or name) that gives the Q-Former's
    text branch where `reads_prompt` is set and the start has no such branch.
    """

    sources: tuple[SourceConfig, ...]
    text_start: str = ""

    @property
    def fixed_settings(self) -> Sequence[str]:
        """Return the names of the settings that a resumed run must share, the start of the text branch among them."""
        return (*super().fixed_settings, "text_start")


@dataclass(frozen=True)
class VqaConfig(CaptionConfig):
    """The settings for fine-tuning on questions: those of `CaptionConfig`, with sets of questions.

    The checkpoint keeps the first prompt, with which `qseek caption` asks its questions.
    """

    sources: tuple[QuestionConfig, ...]  # type: ignore[assignment]
    prompts: tuple[str, ...] = ("Question: {} Answer:",)

    @property
    def has_questions(self) -> bool:
        """Return True: the training sets hold questions."""
        return True


def open_finetuning_start(config: CaptionConfig, data: Path, runs: Path) -> tuple[CaptionerSource, Path]:
    """Return what fine-tuning starts from, and its folder.

    Raises DataError, CheckpointError and TrainingError for a start that is missing or does not fit the settings.
    """
    folder = find_start(config.start, data, runs)
    source = read_captioner(folder)
    if config.image_size:
        source = resize_source(source, folder, config.image_size)
    if config.reads_prompt and not source.config.language.reads_prompt:
        if not config.text_start:
            raise TrainingError(
                f"reads_prompt is set, but the Q-Former of {folder} has no text branch: name the stage-1 run "
                "or retrieval model that it comes from (--set text_start=...), or set reads_prompt=false."
            )
        text_folder = find_start(config.text_start, data, runs)
        source = add_text_branch(source, read_folder(text_folder), text_folder)
    if config.has_questions:
        language = replace(source.config.language, question=config.prompts[0])
        source = replace(source, config=replace(source.config, language=language))
    return source, folder


def add_text_branch(
    source: CaptionerSource, retriever: RetrieverSource, retriever_folder: Path
) -> CaptionerSource:
    """Return a captioner whose Q-Former reads prompts, with the text branch and the vocabulary of a retrieval model.

    retriever_folder: where the retrieval model was read, for messages. Raises DataError if its Q-Former has another
    shape.
    """
    qformer, text_qformer = source.config.qformer, retriever.config.qformer
    new_qformer = replace(
        qformer, vocab_size=text_qformer.vocab_size, max_positions=text_qformer.max_positions
    )
    if replace(text_qformer, dropout=qformer.dropout) != new_qformer:
        raise DataError(
            f"{retriever_folder} cannot give the text branch: its Q-Former is {text_qformer}, the captioner's "
            f"{qformer}."
        )
    text_branch = {name: tensor for name, tensor in retriever.tensors.items() if is_text_branch(name)}
    language = replace(source.config.language, reads_prompt=True)
    config = replace(source.config, qformer=new_qformer, language=language)
    return replace(
        source, config=config, tensors={**source.tensors, **text_branch}, tokenizer=retriever.tokenizer
    )


def run_finetune(
    config: CaptionConfig, data: Path, runs: Path, output: Path, *, say: Say = lambda line: None
) -> None:
    """Fine-tune a captioner by a config.

    `train_captioner` explains the parameters, the files that are written and the errors.
    """
    opener = open_question_set if config.has_questions else open_training_set

    def open_start() -> tuple[CaptionerSource, Path]:
        return open_finetuning_start(config, data, runs)

    train_captioner(config, open_start, data, runs, output, opener=opener, say=say)
