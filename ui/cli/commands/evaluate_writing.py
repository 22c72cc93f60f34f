"""Get the texts that `qseek evaluate` scores: from a results file, or from a model that writes them now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import DataError
from engine.wording import count_text
from ui.cli.options import WritingOptions
from ui.cli.progress_display import show_progress
from ui.cli.terminal import (
    STOPPED_AND_RESUMABLE_TEXT,
    STOPPED_TEXT,
    finish_stopped,
    report_missing,
    say,
)
from ui.reports.writing_report import Facts

if TYPE_CHECKING:
    from engine.datasets.captioned_pictures import Item
    from engine.evaluation.results_files import Layout, Predictions
    from engine.evaluation.writing_run import EvaluationWriter, LoadWriter


def collect_texts(
    items: list[Any], set_path: Path, layout: Layout, options: WritingOptions, load_writer: LoadWriter
) -> tuple[list[Any], list[str], Facts]:
    """Read the texts of all items from a results file, or let a model write them.

    layout: that of the results file. load_writer: called only when a model writes.
    Returns the items that have a text, those texts, and what a report says of the run.
    """
    from engine.evaluation.results_files import read_predictions

    facts = Facts(set_path.name, options.predictions.name if options.predictions else "", limit=options.limit)
    if options.predictions is not None:
        return items, read_predictions(options.predictions, [item.id for item in items], layout), facts
    items, num_absent = _find_pictures(items, options.images or set_path.parent, options.allow_missing)
    facts = replace(facts, num_missing=num_absent)
    return _write_texts(load_writer(), items, set_path, layout, options, facts)


def _find_pictures(items: Sequence[Item], images: Path, allow_missing: bool) -> tuple[list[Item], int]:
    """Return the items whose pictures are in a folder, and the number of the others."""
    from engine.datasets.picture_lookup import find_pictures

    items_with_pictures, missing = find_pictures(items, images)
    if missing:
        report_missing(missing, f"could not be found in {images}", allowed=allow_missing)
    return items_with_pictures, len(items) - len(items_with_pictures)


def _write_texts(
    writer: EvaluationWriter,
    items: list[Item],
    set_path: Path,
    layout: Layout,
    options: WritingOptions,
    facts: Facts,
) -> tuple[list[Item], list[str], Facts]:
    """Let a model write about all items, and save what it wrote. Returns what `collect_texts` returns."""
    started = time.perf_counter()
    predictions = _begin_predictions(writer, items, set_path, layout, options.save)
    unreadable = _write_or_stop(writer, items, predictions, layout)
    if unreadable:
        names = [item.names[0] for item in unreadable]
        report_missing(names, "could not be read", allowed=options.allow_missing)
        items = [item for item in items if item.id in predictions.texts]
        if not items:
            raise DataError("None of the photos could be read.")
    predictions.finish([item.id for item in items])
    if options.save is not None:
        say(f"Wrote {options.save}.")
    facts = replace(
        facts,
        writer=writer.name,
        digest=writer.digest,
        pixels=writer.pixels,
        dtype=writer.dtype,
        how=writer.options,
        num_missing=facts.num_missing + len(unreadable),
        num_kept=predictions.num_kept,
        seconds={"writing": time.perf_counter() - started},
    )
    return items, [predictions.texts[item.id] for item in items], facts


def _begin_predictions(
    writer: EvaluationWriter, items: Sequence[Item], set_path: Path, layout: Layout, save: Path | None
) -> Predictions:
    """Begin the texts of a run with those that the same run has saved before it was stopped."""
    from engine.evaluation.results_files import Predictions

    say(f"{count_text(len(items), layout.noun)} for {writer.name}.")
    run = {**writer.settings, "set": str(set_path.absolute())}
    predictions = Predictions(save, run, layout)
    if predictions.replaced:
        say(f"Note: {predictions.part} {predictions.why_replaced}. It is written anew.")
    return predictions


def _write_or_stop(
    writer: EvaluationWriter, items: Sequence[Item], predictions: Predictions, layout: Layout
) -> list[Item]:
    """Write the texts that are missing; return the items whose picture cannot be read. Ctrl-C ends the command."""
    from engine.evaluation.writing_run import write_all

    try:
        with show_progress(layout.noun) as on_progress:
            return write_all(writer, items, predictions, on_progress)
    except KeyboardInterrupt:
        finish_stopped(STOPPED_TEXT if predictions.path is None else STOPPED_AND_RESUMABLE_TEXT)
