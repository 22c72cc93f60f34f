"""evaluate: how well a model writes captions and answers questions, by the field's measures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.errors import DataError
from ui.cli.options import Command, json_option
from ui.cli.progress_display import shown_progress
from ui.cli.terminal import STOPPED, say, write
from ui.reports import text_forms, writing_report
from ui.reports.writing_report import Facts, Row

if TYPE_CHECKING:
    from engine.datasets.captioned_pictures import CaptionTask, Task
    from engine.datasets.question_files import Questions
    from engine.evaluation.results_files import Layout
    from engine.evaluation.writing_run import Writer

SHOWN = 10
file_option = click.Path(path_type=Path, dir_okay=False)
folder_option = click.Path(path_type=Path, file_okay=False)


@click.group()
def evaluate() -> None:
    """How well a model writes: captions (BLEU, ROUGE-L, CIDEr-D, SPICE) and answers (VQA accuracy).

    The files are the sets' official ones; see `qseek evaluate caption --help` and `qseek evaluate vqa --help`.
    """


def common_options(command: Command) -> Command:
    for option in reversed((
        click.option("--images", type=folder_option, help="Folder of the pictures.  [default: the first file's]"),
        click.option("--predictions", type=file_option, help="Score this results file; no model is loaded."),
        click.option("--save", type=file_option, help="Write a results file; a stopped run goes on beside it."),
        click.option("--limit", type=click.IntRange(min=1), help="Only the first so many: a quick look."),
        click.option("--allow-missing", is_flag=True, help="Leave out photos that are not there or cannot be read."),
        click.option("--beams", type=click.IntRange(min=1), default=5, show_default=True, help="Of the beam search."),
        json_option,
    )):  # fmt: skip
        command = option(command)
    return command


def _check_usage(predictions: Path | None, save: Path | None, limit: int | None) -> None:
    if predictions is not None and (save is not None or limit is not None):
        raise click.UsageError("--predictions is scored as it is: leave --save and --limit out.")
    if save is not None and not save.absolute().parent.is_dir():
        raise DataError(f"{save} cannot be written: its folder is not there.")


@evaluate.command()
@click.argument("data")
@click.option("--split", default="test", show_default=True, help="Which part of a Karpathy file.")
@click.option(
    "--model", envvar="QSEEK_CAPTION_MODEL", show_envvar=True, metavar="NAME|FOLDER",
    help="One with a language model or an ITG head.  [default: the bundled one]",
)  # fmt: skip
@common_options
@click.option("--min-length", type=click.IntRange(min=1), default=8, show_default=True, help="In tokens.")
@click.option("--max-length", type=click.IntRange(min=1), default=30, show_default=True, help="In tokens.")
@click.option("--prompt", help='What a language model goes on from.  [default: "a photo of"]')
@click.option("--spice", "with_spice", is_flag=True, help="SPICE, too; needs Java and qseek[spice].")
def caption(
    data: str, split: str, model: str | None, images: Path | None, predictions: Path | None, save: Path | None,
    limit: int | None, allow_missing: bool, beams: int, as_json: bool, min_length: int, max_length: int,
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
    _check_usage(predictions, save, limit)
    if min_length > max_length:
        raise click.UsageError(
            f"--min-length is {min_length}, --max-length {max_length}: it is the longer one."
        )
    from engine.datasets.caption_files import read_caption_tasks
    from engine.datasets.captioned_pictures import first_few
    from engine.evaluation.results_files import CAPTIONS, read_predictions

    source = Path(data).expanduser()
    tasks = read_caption_tasks(source, split)[:limit]
    bare = [task.id for task in tasks if not task.references]
    if bare and (len(bare) < len(tasks) or save is None):
        raise DataError(
            f"{len(bare):,} of the {text_forms.count_text(len(tasks), 'photo')} in {source} have no reference captions "
            f"({first_few(bare)}); "
            + (
                "leave them out."
                if len(bare) < len(tasks)
                else "write captions alone with --save, or take another."
            )
        )
    facts = Facts(source.name, predictions.name if predictions else "", limit=limit)
    if predictions is not None:
        texts = read_predictions(predictions, [task.id for task in tasks], CAPTIONS)
    else:
        from engine.evaluation.writing_run import caption_writer

        tasks, absent = _with_pictures(tasks, images or source.parent, allow_missing)
        writer = caption_writer(model, beams, min_length, max_length, prompt)
        tasks, texts, facts = _run(writer, tasks, absent, facts, source, save, CAPTIONS, allow_missing)
    if not bare:
        _report_captions(facts, tasks, texts, with_spice, as_json)


def _with_pictures(tasks: Sequence[Task], images: Path, allow_missing: bool) -> tuple[list[Task], int]:
    """The tasks whose pictures are there, and how many are not."""
    from engine.datasets.picture_lookup import find_pictures

    found, missing = find_pictures(tasks, images)
    if missing:
        _say_missing(missing, f"not in {images}")
        if not allow_missing:
            raise DataError(
                _LEFT_OUT.format(n=len(missing), photos="photos are" if len(missing) > 1 else "photo is")
            )
    return found, len(tasks) - len(found)


_LEFT_OUT = (
    "{n:,} {photos} missing: add them, or leave them out with --allow-missing (the report will say so)."
)


def _say_missing(names: Sequence[str], why: str) -> None:
    say(f"{text_forms.count_text(len(names), 'photo')} {why}:")
    for name in names[:SHOWN]:
        say(f"  {name}")
    if len(names) > SHOWN:
        say(f"  and {len(names) - SHOWN:,} more")


def _run(
    writer: Writer, tasks: list[Task], num_absent: int, facts: Facts, source: Path, save: Path | None, layout: Layout,
    allow_missing: bool,
) -> tuple[list[Task], list[str], Facts]:  # fmt: skip
    """Write, and keep what is written; the tasks whose pictures could be read, their texts, what the report says."""
    from engine.evaluation.results_files import Predictions
    from engine.evaluation.writing_run import write_all

    say(f"{text_forms.count_text(len(tasks), layout.what)} for {writer.name}.")
    started = time.perf_counter()
    run = {"model": writer.digest, "dtype": writer.dtype, "how": writer.how, "set": str(source.absolute())}
    kept = Predictions(save, run, layout)
    if kept.replaced:
        say(f"Note: {kept.part} was another run's (another model, set or way of writing); it is begun anew.")
    try:
        with shown_progress(layout.what) as on_progress:
            unreadable = write_all(writer, tasks, kept, on_progress)
    except KeyboardInterrupt:
        say("Stopped; the same command goes on from here." if save else "Stopped.")
        click.get_current_context().exit(STOPPED)
    if unreadable:
        _say_missing([task.names[0] for task in unreadable], "could not be read")
        if not allow_missing:
            photos = "photos are" if len(unreadable) > 1 else "photo is"
            raise DataError(_LEFT_OUT.format(n=len(unreadable), photos=photos))
        tasks = [task for task in tasks if task.id in kept.texts]
        if not tasks:
            raise DataError("None of the photos could be read.")
    kept.finish([task.id for task in tasks])
    if save is not None:
        say(f"Wrote {save}.")
    facts = replace(
        facts, writer=writer.name, digest=writer.digest, pixels=writer.pixels, dtype=writer.dtype, how=writer.how,
        num_missing=num_absent + len(unreadable), num_kept=kept.kept,
        seconds={"writing": time.perf_counter() - started},
    )  # fmt: skip
    return tasks, [kept.texts[task.id] for task in tasks], facts


def _report_captions(
    facts: Facts, tasks: Sequence[CaptionTask], texts: Sequence[str], with_spice: bool, as_json: bool
) -> None:
    from engine.evaluation.caption_metrics import caption_scores

    started = time.perf_counter()
    spice, note = _spice(texts, tasks) if with_spice else (None, None)
    if note:
        say(f"Note: {note} The other scores are given.")
        facts = replace(facts, notes=(*facts.notes, note))
    domains = sorted({task.domain for task in tasks if task.domain})
    rows = []
    for name in ("all", *domains):
        places = [place for place, task in enumerate(tasks) if name in ("all", task.domain)]
        scores = caption_scores(
            [texts[place] for place in places], [tasks[place].references for place in places]
        )
        if spice is not None:
            scores["SPICE"] = float(spice[places].mean())
        rows.append(Row(name, len(places), scores))
    facts = replace(facts, seconds={**facts.seconds, "scoring": time.perf_counter() - started})
    num_references = sum(len(task.references) for task in tasks)
    if as_json:
        write(writing_report.as_json(facts, rows, "photo"))
    else:
        write(writing_report.markdown(facts, rows, "photo", f", {num_references:,} references"))


def _spice(texts: Sequence[str], tasks: Sequence[CaptionTask]) -> tuple[Any, str | None]:
    """Of each photo, or None and why not."""
    from engine.evaluation.caption_words import words
    from engine.evaluation.spice import spice

    try:
        return spice(
            [words(text) for text in texts], [[words(one) for one in task.references] for task in tasks]
        ), None
    except DataError as error:
        return None, str(error)


@evaluate.command()
@click.argument("data", nargs=-1, required=True, type=file_option)
@click.option(
    "--model", envvar="QSEEK_CAPTION_MODEL", show_envvar=True, metavar="NAME|FOLDER",
    help="One with a language model: blip2-opt-2.7b, a folder, a Hugging Face id.",
)  # fmt: skip
@common_options
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=10, show_default=True, help="Of an answer."
)
def vqa(
    data: tuple[Path, ...], model: str | None, images: Path | None, predictions: Path | None, save: Path | None,
    limit: int | None, allow_missing: bool, beams: int, as_json: bool, max_new_tokens: int,
) -> None:  # fmt: skip
    """Answers to every question of DATA, against people's.

    DATA is VQAv2's or OK-VQA's questions file and the annotations that belong to it, or GQA's one file. Without
    annotations answers are only written (--save). VQA: min(people who say so / 3, 1) in the official spelling; GQA: the
    same text.

    \b
        qseek evaluate vqa v2_OpenEnded_mscoco_val2014_questions.json v2_mscoco_val2014_annotations.json \\
            --images ~/coco --model blip2-opt-2.7b
        qseek evaluate vqa testdev_balanced_questions.json --images ~/gqa/images --model FOLDER --save answers.json
    """
    _check_usage(predictions, save, limit)
    from engine.datasets.captioned_pictures import first_few
    from engine.datasets.question_files import read_questions
    from engine.evaluation.results_files import ANSWERS, GQA_ANSWERS, read_predictions

    found = read_questions(data)
    tasks = found.questions[:limit]
    bare = [task.id for task in tasks if not task.answers]
    if bare and (len(bare) < len(tasks) or save is None):
        raise DataError(
            f"{len(bare):,} of {text_forms.count_text(len(tasks), 'question')} have no answers to compare with "
            f"({first_few(bare)}); give the annotations file, too, or write answers alone with --save."
        )
    layout = GQA_ANSWERS if found.is_gqa else ANSWERS
    facts = Facts(data[0].name, predictions.name if predictions else "", limit=limit)
    if predictions is not None:
        texts = read_predictions(predictions, [task.id for task in tasks], layout)
    else:
        from engine.evaluation.writing_run import answer_writer

        if model is None:
            raise click.UsageError(
                "--model names what answers; --predictions FILE scores answers that are there."
            )
        tasks, absent = _with_pictures(tasks, images or data[0].parent, allow_missing)
        tasks, texts, facts = _run(
            answer_writer(model, beams, max_new_tokens),
            tasks,
            absent,
            facts,
            data[0],
            save,
            layout,
            allow_missing,
        )
    if not bare:
        _report_answers(facts, replace(found, questions=tasks), texts, as_json)


def _report_answers(facts: Facts, found: Questions, texts: Sequence[str], as_json: bool) -> None:
    from engine.evaluation.vqa_accuracy import gqa_accuracy, mean_accuracy, vqa_accuracy

    started = time.perf_counter()
    pairs = list(zip(texts, found.questions, strict=True))
    if found.is_gqa:
        accuracies = [gqa_accuracy(text, task.answers[0]) for text, task in pairs]
    else:
        accuracies = [vqa_accuracy(text, task.answers) for text, task in pairs]
    groups = mean_accuracy(accuracies, [task.kinds for task in found.questions])
    rows = [Row(name, count, {"accuracy": value}) for name, (value, count) in groups.items()]
    facts = replace(facts, seconds={**facts.seconds, "scoring": time.perf_counter() - started})
    write((writing_report.as_json if as_json else writing_report.markdown)(facts, rows, "question"))
