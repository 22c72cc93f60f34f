"""Define `qseek evaluate`, which measures how well a model writes captions and answers questions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.errors import DataError
from engine.wording import count_text
from ui.cli.commands.evaluate_writing import collect_texts
from ui.cli.options import (
    WritingOptions,
    captioner_model_option,
    file_type,
    positive_type,
    split_option,
    writing_options,
)
from ui.cli.terminal import say_notes, write
from ui.reports import writing_report
from ui.reports.writing_report import Facts, ScoreRow

if TYPE_CHECKING:
    from engine.datasets.captioned_pictures import CaptionItem
    from engine.datasets.question_files import Questions
    from engine.evaluation.writing_run import EvaluationWriter, LoadWriter


@click.group()
def evaluate() -> None:
    """Measure how well a model writes captions and answers questions.

    Captions are scored by BLEU, ROUGE-L, CIDEr-D and SPICE, answers by VQA accuracy. The files are the official ones
    of each set.
    """


@evaluate.command()
@click.argument("data")
@split_option
@captioner_model_option(
    "Use this model; it needs a language model or an ITG head.", default="the bundled captioner"
)
@writing_options
@click.option(
    "--min-length",
    type=positive_type,
    default=8,
    show_default=True,
    metavar="N",
    help="Write at least N tokens.",
)
@click.option(
    "--max-length",
    type=positive_type,
    default=30,
    show_default=True,
    metavar="N",
    help="Write at most N tokens.",
)
@click.option(
    "--prompt",
    help="Let each caption continue this text; needs a language model.",
    show_default='"a photo of"',
)
@click.option("--spice", "with_spice", is_flag=True, help="Score SPICE, too; needs Java and qseek[spice].")
def caption(
    data: str,
    split: str,
    model: str | None,
    options: WritingOptions,
    min_length: int,
    max_length: int,
    prompt: str | None,
    with_spice: bool,
) -> None:
    """Write captions of all pictures of DATA and score them.

    DATA is a captions file of COCO or NoCaps, a JSON file of Karpathy, ALBEF or LAVIS, a WebDataset shard (a .tar
    file, or a pattern of them in quotes), or a folder with metadata. The captions are compared with people's. Scores
    are in percent; CIDEr-D is multiplied by 100, as papers print it.

    \b
        qseek evaluate caption captions_val2014.json \\
            --images ~/coco/val2014 --model blip2-opt-2.7b
        qseek evaluate caption nocaps_val_4500_captions.json \\
            --images ~/nocaps --save captions.json
        qseek evaluate caption captions_val2014.json --predictions captions.json
    """
    _check_usage(options)
    if min_length > max_length:
        raise click.UsageError(
            f"--min-length is {min_length}, but --max-length is {max_length}. Give a --max-length that is not below "
            "--min-length."
        )
    from engine.datasets.captioned_sets import read_caption_items
    from engine.evaluation.results_files import CAPTIONS
    from engine.evaluation.writing_run import load_caption_writer

    def load_writer() -> EvaluationWriter:
        return load_caption_writer(model, options.beams, min_length, max_length, prompt)

    set_path = Path(data).expanduser()
    items = read_caption_items(set_path, split)[: options.limit]
    has_references = _check_references(items, set_path, options)
    items, texts, facts = collect_texts(items, set_path, CAPTIONS, options, load_writer)
    if has_references:
        _report_captions(facts, items, texts, with_spice, options.as_json)


def _check_usage(options: WritingOptions) -> None:
    """Raise UsageError for options that contradict each other, and DataError for a --save that cannot be written."""
    if options.predictions is not None and (options.save is not None or options.limit is not None):
        raise click.UsageError("--predictions scores a file as it is. Leave --save and --limit out.")
    if options.save is not None and not options.save.absolute().parent.is_dir():
        raise DataError(f"{options.save} cannot be written: its folder is missing. Make the folder.")


def _check_references(items: Sequence[CaptionItem], set_path: Path, options: WritingOptions) -> bool:
    """Return whether the items have captions to compare with.

    Raises DataError when only some of them have captions, or when captions would be neither scored nor saved.
    """
    from engine.datasets.captioned_pictures import name_first_few

    bare = [item.id for item in items if not item.references]
    if bare and (len(bare) < len(items) or options.save is None):
        advice = (
            "Leave them out of the set."
            if len(bare) < len(items)
            else "Give another set, or only write captions with --save."
        )
        raise DataError(
            f"{len(bare):,} of the {count_text(len(items), 'photo')} in {set_path} have no reference captions "
            f"({name_first_few(bare)}). {advice}"
        )
    return not bare


def _report_captions(
    facts: Facts, items: Sequence[CaptionItem], texts: Sequence[str], with_spice: bool, as_json: bool
) -> None:
    """Score captions, for all photos and for each domain of the set, and write the report to stdout."""
    from engine.evaluation.caption_metrics import score_captions

    started = time.perf_counter()
    spice_scores, note = _compute_spice(texts, items) if with_spice else (None, None)
    if note:
        say_notes([f"{note} The other scores are given."])
        facts = replace(facts, notes=(*facts.notes, note))
    domains = sorted({item.domain for item in items if item.domain})
    rows = []
    for name in ("all", *domains):
        numbers = [number for number, item in enumerate(items) if name in ("all", item.domain)]
        scores = score_captions(
            [texts[number] for number in numbers], [items[number].references for number in numbers]
        )
        if spice_scores is not None:
            scores["SPICE"] = float(spice_scores[numbers].mean())
        rows.append(ScoreRow(name, len(numbers), scores))
    facts = replace(facts, seconds={**facts.seconds, "scoring": time.perf_counter() - started})
    num_references = sum(len(item.references) for item in items)
    if as_json:
        write(writing_report.format_json(facts, rows, "photo"))
    else:
        write(writing_report.format_markdown(facts, rows, "photo", f", {num_references:,} references"))


def _compute_spice(texts: Sequence[str], items: Sequence[CaptionItem]) -> tuple[Any, str | None]:
    """Return the SPICE of each photo (N,) and None, or None and the reason why it cannot be computed."""
    from engine.evaluation.caption_words import split_words
    from engine.evaluation.spice import spice

    references = [[split_words(reference) for reference in item.references] for item in items]
    try:
        return spice([split_words(text) for text in texts], references), None
    except DataError as error:
        return None, str(error)


@evaluate.command()
@click.argument("data", nargs=-1, required=True, type=file_type)
@captioner_model_option(
    "Use this model with a language model, such as blip2-opt-2.7b; a Hugging Face id will do."
)
@writing_options
@click.option(
    "--max-new-tokens",
    type=positive_type,
    default=10,
    show_default=True,
    metavar="N",
    help="Write at most N tokens for an answer.",
)
def vqa(data: tuple[Path, ...], model: str | None, options: WritingOptions, max_new_tokens: int) -> None:
    """Answer all questions of DATA and score the answers.

    DATA is the questions file of VQAv2 or OK-VQA and its annotations file, or the one file of GQA. Without annotations
    the answers are only written (--save). An answer to VQA scores min(people who gave it / 3, 1) in the official
    spelling, an answer to GQA scores 1 when it is people's.

    \b
        qseek evaluate vqa v2_OpenEnded_mscoco_val2014_questions.json \\
            v2_mscoco_val2014_annotations.json \\
            --images ~/coco --model blip2-opt-2.7b
        qseek evaluate vqa testdev_balanced_questions.json \\
            --images ~/gqa/images --model FOLDER --save answers.json
    """
    _check_usage(options)
    from engine.datasets.question_files import read_questions_to_score
    from engine.evaluation.results_files import ANSWERS, GQA_ANSWERS

    questions = read_questions_to_score(data)
    questions = replace(questions, questions=questions.questions[: options.limit])
    has_answers = _check_answers(questions, options)
    layout = GQA_ANSWERS if questions.is_gqa else ANSWERS
    load_writer = _make_loader(model, options, max_new_tokens)
    items, texts, facts = collect_texts(questions.questions, data[0], layout, options, load_writer)
    if has_answers:
        _report_answers(facts, replace(questions, questions=items), texts, options.as_json)


def _check_answers(questions: Questions, options: WritingOptions) -> bool:
    """Return whether the questions have answers to compare with.

    Raises DataError when only some of them have answers, or when answers would be neither scored nor saved.
    """
    from engine.datasets.captioned_pictures import name_first_few

    bare = [item.id for item in questions.questions if not item.answers]
    if bare and (len(bare) < len(questions.questions) or options.save is None):
        raise DataError(
            f"{len(bare):,} of the {count_text(len(questions.questions), 'question')} have no answers to compare with "
            f"({name_first_few(bare)}). Give the annotations file, too, or only write answers with --save."
        )
    return not bare


def _make_loader(model: str | None, options: WritingOptions, max_new_tokens: int) -> LoadWriter:
    """Return the function that loads the model that answers. Raises UsageError when a needed model is not named."""
    from engine.evaluation.writing_run import load_answer_writer

    if model is None and options.predictions is None:
        raise click.UsageError(
            "No model is named. Name one that answers with --model, or give answers to score with --predictions FILE."
        )

    def load_writer() -> EvaluationWriter:
        assert model is not None
        return load_answer_writer(model, options.beams, max_new_tokens)

    return load_writer


def _report_answers(facts: Facts, questions: Questions, texts: Sequence[str], as_json: bool) -> None:
    """Score answers, for all questions and for each kind of them, and write the report to stdout."""
    from engine.evaluation.vqa_accuracy import gqa_accuracy, mean_accuracy, vqa_accuracy

    started = time.perf_counter()
    pairs = list(zip(texts, questions.questions, strict=True))
    if questions.is_gqa:
        accuracies = [gqa_accuracy(text, item.answers[0]) for text, item in pairs]
    else:
        accuracies = [vqa_accuracy(text, item.answers) for text, item in pairs]
    groups = mean_accuracy(accuracies, [item.kinds for item in questions.questions])
    rows = [ScoreRow(name, count, {"accuracy": value}) for name, (value, count) in groups.items()]
    facts = replace(facts, seconds={**facts.seconds, "scoring": time.perf_counter() - started})
    format_report = writing_report.format_json if as_json else writing_report.format_markdown
    write(format_report(facts, rows, "question"))
