"""evaluate: how well a model writes captions and answers questions, by the field's measures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.errors import DataError
from engine.wording import count_text
from ui.cli.options import WritingOptions, captioner_model_option, file_type, split_option, writing_options
from ui.cli.progress_display import show_progress_bar
from ui.cli.terminal import STOPPED, STOPPED_AND_RESUMABLE, report_missing, say, write
from ui.reports import writing_report
from ui.reports.writing_report import Facts, ScoreRow

if TYPE_CHECKING:
    from engine.datasets.captioned_pictures import CaptionItem, Item
    from engine.datasets.question_files import Questions
    from engine.evaluation.results_files import Layout, Predictions
    from engine.evaluation.writing_run import EvaluationWriter, LoadWriter


@click.group()
def evaluate() -> None:
    """How well a model writes: captions (BLEU, ROUGE-L, CIDEr-D, SPICE) and answers (VQA accuracy).

    The files are the sets' official ones; see `qseek evaluate caption --help` and `qseek evaluate vqa --help`.
    """


@evaluate.command()
@click.argument("data")
@split_option
@captioner_model_option("One with a language model or an ITG head.  [default: the bundled one]")
@writing_options
@click.option("--min-length", type=click.IntRange(min=1), default=8, show_default=True, help="In tokens.")
@click.option("--max-length", type=click.IntRange(min=1), default=30, show_default=True, help="In tokens.")
@click.option("--prompt", help='What a language model goes on from.  [default: "a photo of"]')
@click.option("--spice", "with_spice", is_flag=True, help="SPICE, too; needs Java and qseek[spice].")
def caption(
    data: str, split: str, model: str | None, options: WritingOptions, min_length: int, max_length: int,
    prompt: str | None, with_spice: bool,
) -> None:  # fmt: skip
    """Captions of every picture of DATA, against people's.

    DATA is COCO's or NoCaps' captions file, Karpathy's or an ALBEF/LAVIS JSON, a WebDataset shard (a .tar file, or a
    pattern of them in quotes), or a folder with metadata. Scores in percent; CIDEr-D times 100, as papers print it.

    \b
        qseek evaluate caption captions_val2014.json --images ~/coco/val2014 --model blip2-opt-2.7b
        qseek evaluate caption nocaps_val_4500_captions.json --images ~/nocaps --save captions.json
        qseek evaluate caption captions_val2014.json --predictions captions.json
    """
    _check_usage(options)
    if min_length > max_length:
        raise click.UsageError(
            f"--min-length is {min_length}, --max-length {max_length}: it is the longer one."
        )
    from engine.datasets.captioned_sets import read_caption_items
    from engine.evaluation.results_files import CAPTIONS
    from engine.evaluation.writing_run import load_caption_writer

    source = Path(data).expanduser()
    tasks = read_caption_items(source, split)[: options.limit]
    has_references = _check_references(tasks, source, options)
    tasks, texts, facts = _texts(
        tasks, source, CAPTIONS, options,
        lambda: load_caption_writer(model, options.beams, min_length, max_length, prompt),
    )  # fmt: skip
    if has_references:
        _report_captions(facts, tasks, texts, with_spice, options.as_json)


def _check_usage(options: WritingOptions) -> None:
    if options.predictions is not None and (options.save is not None or options.limit is not None):
        raise click.UsageError("--predictions is scored as it is: leave --save and --limit out.")
    if options.save is not None and not options.save.absolute().parent.is_dir():
        raise DataError(f"{options.save} cannot be written: its folder is not there.")


def _check_references(tasks: Sequence[CaptionItem], source: Path, options: WritingOptions) -> bool:
    """Return whether there are captions to compare with; raise DataError where some photos alone have none, or where
    what is written would neither be scored nor saved."""
    from engine.datasets.captioned_pictures import name_first_few

    bare = [task.id for task in tasks if not task.references]
    if bare and (len(bare) < len(tasks) or options.save is None):
        advice = (
            "leave them out."
            if len(bare) < len(tasks)
            else "write captions alone with --save, or take another."
        )
        raise DataError(
            f"{len(bare):,} of the {count_text(len(tasks), 'photo')} in {source} have no reference captions "
            f"({name_first_few(bare)}); {advice}"
        )
    return not bare


def _texts(
    tasks: list[Any], source: Path, layout: Layout, options: WritingOptions, load_photo_captioner: LoadWriter
) -> tuple[list[Any], list[str], Facts]:
    """Read the texts of all tasks from a results file, or let a model write them.

    Returns the tasks that have a text, those texts, and what a report says of the run.
    """
    from engine.evaluation.results_files import read_predictions

    facts = Facts(source.name, options.predictions.name if options.predictions else "", limit=options.limit)
    if options.predictions is not None:
        return tasks, read_predictions(options.predictions, [task.id for task in tasks], layout), facts
    tasks, num_absent = _with_pictures(tasks, options.images or source.parent, options.allow_missing)
    facts = replace(facts, num_missing=num_absent)
    return _written(load_photo_captioner(), tasks, source, layout, options, facts)


def _with_pictures(tasks: Sequence[Item], images: Path, allow_missing: bool) -> tuple[list[Item], int]:
    """The tasks whose pictures are there, and how many are not."""
    from engine.datasets.picture_lookup import find_pictures

    found, missing = find_pictures(tasks, images)
    if missing:
        report_missing(missing, f"not in {images}", allowed=allow_missing)
    return found, len(tasks) - len(found)


def _written(
    writer: EvaluationWriter, tasks: list[Item], source: Path, layout: Layout, options: WritingOptions, facts: Facts
) -> tuple[list[Item], list[str], Facts]:  # fmt: skip
    """Let a model write about all tasks, and save what it wrote; see `_texts`."""
    started = time.perf_counter()
    predictions = _begun(writer, tasks, source, layout, options.save)
    unreadable = _write_or_stop(writer, tasks, predictions, layout)
    if unreadable:
        names = [task.names[0] for task in unreadable]
        report_missing(names, "could not be read", allowed=options.allow_missing)
        tasks = [task for task in tasks if task.id in predictions.texts]
        if not tasks:
            raise DataError("None of the photos could be read.")
    predictions.finish([task.id for task in tasks])
    if options.save is not None:
        say(f"Wrote {options.save}.")
    facts = replace(
        facts, writer=writer.name, digest=writer.digest, pixels=writer.pixels, dtype=writer.dtype, how=writer.options,
        num_missing=facts.num_missing + len(unreadable), num_kept=predictions.num_kept,
        seconds={"writing": time.perf_counter() - started},
    )  # fmt: skip
    return tasks, [predictions.texts[task.id] for task in tasks], facts


def _begun(
    writer: EvaluationWriter, tasks: Sequence[Item], source: Path, layout: Layout, save: Path | None
) -> Predictions:
    """Begin the texts of a run, with those that the same run has left where it was stopped."""
    from engine.evaluation.results_files import Predictions

    say(f"{count_text(len(tasks), layout.noun)} for {writer.name}.")
    run = {**writer.settings, "set": str(source.absolute())}
    predictions = Predictions(save, run, layout)
    if predictions.replaced:
        say(f"Note: {predictions.part} {predictions.why_replaced}; it is begun anew.")
    return predictions


def _write_or_stop(
    writer: EvaluationWriter, tasks: Sequence[Item], predictions: Predictions, layout: Layout
) -> list[Item]:
    """Write what is missing; return the tasks whose picture cannot be read. Ctrl-C ends the command."""
    from engine.evaluation.writing_run import write_all

    try:
        with show_progress_bar(layout.noun) as on_progress:
            return write_all(writer, tasks, predictions, on_progress)
    except KeyboardInterrupt:
        say("Stopped." if predictions.path is None else STOPPED_AND_RESUMABLE)
        click.get_current_context().exit(STOPPED)


def _report_captions(
    facts: Facts, tasks: Sequence[CaptionItem], texts: Sequence[str], with_spice: bool, as_json: bool
) -> None:
    from engine.evaluation.caption_metrics import score_captions

    started = time.perf_counter()
    spice, note = _spice(texts, tasks) if with_spice else (None, None)
    if note:
        say(f"Note: {note} The other scores are given.")
        facts = replace(facts, notes=(*facts.notes, note))
    domains = sorted({task.domain for task in tasks if task.domain})
    rows = []
    for name in ("all", *domains):
        places = [place for place, task in enumerate(tasks) if name in ("all", task.domain)]
        scores = score_captions(
            [texts[place] for place in places], [tasks[place].references for place in places]
        )
        if spice is not None:
            scores["SPICE"] = float(spice[places].mean())
        rows.append(ScoreRow(name, len(places), scores))
    facts = replace(facts, seconds={**facts.seconds, "scoring": time.perf_counter() - started})
    num_references = sum(len(task.references) for task in tasks)
    if as_json:
        write(writing_report.format_json(facts, rows, "photo"))
    else:
        write(writing_report.format_markdown(facts, rows, "photo", f", {num_references:,} references"))


def _spice(texts: Sequence[str], tasks: Sequence[CaptionItem]) -> tuple[Any, str | None]:
    """Of each photo, or None and why not."""
    from engine.evaluation.caption_words import split_words
    from engine.evaluation.spice import spice

    references = [[split_words(reference) for reference in task.references] for task in tasks]
    try:
        return spice([split_words(text) for text in texts], references), None
    except DataError as error:
        return None, str(error)


@evaluate.command()
@click.argument("data", nargs=-1, required=True, type=file_type)
@captioner_model_option("One with a language model: blip2-opt-2.7b, a folder, a Hugging Face id.")
@writing_options
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=10, show_default=True, help="Of an answer."
)
def vqa(data: tuple[Path, ...], model: str | None, options: WritingOptions, max_new_tokens: int) -> None:
    """Answers to every question of DATA, against people's.

    DATA is VQAv2's or OK-VQA's questions file and the annotations that belong to it, or GQA's one file. Without
    annotations answers are only written (--save). VQA: min(people who say so / 3, 1) in the official spelling; GQA: the
    same text.

    \b
        qseek evaluate vqa v2_OpenEnded_mscoco_val2014_questions.json v2_mscoco_val2014_annotations.json \\
            --images ~/coco --model blip2-opt-2.7b
        qseek evaluate vqa testdev_balanced_questions.json --images ~/gqa/images --model FOLDER --save answers.json
    """
    _check_usage(options)
    from engine.datasets.question_files import read_questions_to_score
    from engine.evaluation.results_files import ANSWERS, GQA_ANSWERS

    questions = read_questions_to_score(data)
    questions = replace(questions, questions=questions.questions[: options.limit])
    has_answers = _check_answers(questions, options)
    layout = GQA_ANSWERS if questions.is_gqa else ANSWERS
    load_photo_captioner = _answerer(model, options, max_new_tokens)
    tasks, texts, facts = _texts(questions.questions, data[0], layout, options, load_photo_captioner)
    if has_answers:
        _report_answers(facts, replace(questions, questions=tasks), texts, options.as_json)


def _check_answers(questions: Questions, options: WritingOptions) -> bool:
    """Return whether there are answers to compare with; raise DataError where some questions alone have none, or where
    what is written would neither be scored nor saved."""
    from engine.datasets.captioned_pictures import name_first_few

    bare = [task.id for task in questions.questions if not task.answers]
    if bare and (len(bare) < len(questions.questions) or options.save is None):
        raise DataError(
            f"{len(bare):,} of {count_text(len(questions.questions), 'question')} have no answers to compare with "
            f"({name_first_few(bare)}); give the annotations file, too, or write answers alone with --save."
        )
    return not bare


def _answerer(model: str | None, options: WritingOptions, max_new_tokens: int) -> LoadWriter:
    """Return what loads the model that answers; raise a usage error where one is needed and none is named."""
    from engine.evaluation.writing_run import load_answer_writer

    if model is None and options.predictions is None:
        raise click.UsageError(
            "--model names what answers; --predictions FILE scores answers that are there."
        )

    def load_photo_captioner() -> EvaluationWriter:
        assert model is not None
        return load_answer_writer(model, options.beams, max_new_tokens)

    return load_photo_captioner


def _report_answers(facts: Facts, found: Questions, texts: Sequence[str], as_json: bool) -> None:
    from engine.evaluation.vqa_accuracy import gqa_accuracy, mean_accuracy, vqa_accuracy

    started = time.perf_counter()
    pairs = list(zip(texts, found.questions, strict=True))
    if found.is_gqa:
        accuracies = [gqa_accuracy(text, task.answers[0]) for text, task in pairs]
    else:
        accuracies = [vqa_accuracy(text, task.answers) for text, task in pairs]
    groups = mean_accuracy(accuracies, [task.kinds for task in found.questions])
    rows = [ScoreRow(name, count, {"accuracy": value}) for name, (value, count) in groups.items()]
    facts = replace(facts, seconds={**facts.seconds, "scoring": time.perf_counter() - started})
    format_report = writing_report.format_json if as_json else writing_report.format_markdown
    write(format_report(facts, rows, "question"))
