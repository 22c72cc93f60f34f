"""Define `qseek recall`, which measures how well a model searches a captioned set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.errors import DataError
from engine.types import RERANKED
from engine.wording import count_text
from ui.cli.commands.recall_files import check_outputs, write_errors_page, write_plot
from ui.cli.commands.recall_run import SMALLER_GALLERY, Request, evaluate_or_stop
from ui.cli.options import (
    allow_missing_option,
    file_type,
    folder_type,
    json_option,
    limit_option,
    positive_type,
    retrieval_model_option,
    split_option,
)
from ui.cli.terminal import report_missing, say_notes, write
from ui.reports import recall_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.datasets.captioned_pictures import CaptionedPicture
    from engine.evaluation.recall import Evaluation

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Bytes(click.ParamType[int]):
    """An amount of memory, such as 8G or 500M, as a number of bytes."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", str(value).strip(), re.IGNORECASE)
        if not parts:
            self.fail(f"{value!r} is not an amount of memory. Write for example 8G or 500M.", param, ctx)
        return int(float(parts[1]) * UNITS[parts[2].upper()])


@click.command()
@click.argument("dataset")
@click.option("--images", type=folder_type, help="Find the annotations' pictures in this folder.")
@click.option(
    "--annotations", type=file_type, help="Read captions from this ALBEF, LAVIS or Karpathy JSON file."
)
@split_option
@retrieval_model_option("the bundled one")
@click.option(
    "--rerank",
    default=RERANKED,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Rerank N candidates by ITM.",
)
@click.option("--no-rerank", is_flag=True, help="Rank by ITC alone.")
@limit_option("pictures")
@allow_missing_option
@click.option(
    "--memory",
    type=Bytes(),
    default="2G",
    show_default=True,
    help="Use at most this much memory for what grows with the set.",
)
@click.option(
    "--cache",
    type=folder_type,
    help="Keep finished phases in this folder.",
    show_default="in the user's cache",
)
@click.option("--no-cache", is_flag=True, help="Keep no finished phases.")
@click.option("--plot", type=file_type, help="Draw recall against k, and what reranking moved, to this file.")
@click.option("--errors", type=positive_type, metavar="N", help="Write a page of the N worst misses.")
@click.option(
    "--errors-page",
    type=file_type,
    default=Path("recall-errors.html"),
    show_default=True,
    help="Write the page of --errors to this file.",
)
@json_option
def recall(
    dataset: str,
    images: Path | None,
    annotations: Path | None,
    split: str,
    model: str | None,
    rerank: int,
    no_rerank: bool,
    limit: int | None,
    allow_missing: bool,
    memory: int,
    cache: Path | None,
    no_cache: bool,
    plot: Path | None,
    errors: int | None,
    errors_page: Path,
    as_json: bool,
) -> None:
    """Measure how well a model searches a captioned set.

    Prints Recall@1, 5 and 10 from photo to text (TR) and from text to photo (IR), before and after reranking. DATASET
    is a WebDataset shard (a .tar file, or a pattern of them in quotes), or, with --annotations and --images, a name
    for the report; `flickr30k` and `coco` are shown beside BLIP-2's published numbers. A stopped run goes on from
    where it was.

    \b
        qseek recall flickr30k \\
            --annotations flickr30k_test.json --images ~/flickr30k-images
        qseek recall coco --annotations dataset_coco.json --images ~/coco
    """
    _check_usage(cache, no_cache, plot, errors_page if errors else None)
    samples, num_absent = _open_samples(dataset, images, annotations, split, allow_missing)
    samples = samples[:limit]
    _check_captions(samples)
    name = Path(dataset).name if dataset.endswith(".tar") else dataset
    k = 0 if no_rerank else rerank
    request = Request(name, samples, model, k, limit, allow_missing, memory, num_absent)
    evaluation, facts = evaluate_or_stop(request, cache, keep=not no_cache)
    _report(request, evaluation, facts, as_json)
    if plot is not None:
        write_plot(plot, facts, evaluation)
    if errors:
        write_errors_page(errors_page, facts, evaluation, errors, samples)


def _check_usage(cache: Path | None, no_cache: bool, plot: Path | None, errors_page: Path | None) -> None:
    """Raise UsageError for options that contradict each other, and DataError for files that cannot be written."""
    if no_cache and cache:
        raise click.UsageError(
            "--cache keeps finished phases, but --no-cache keeps none. Give only one of them."
        )
    check_outputs(plot, errors_page)


def _open_samples(
    dataset: str, images: Path | None, annotations: Path | None, split: str, allow_missing: bool
) -> tuple[list[CaptionedPicture], int]:
    """Return the pictures with their captions, and the number of pictures whose files are missing.

    Raises DataError for missing files unless that is allowed, and for a set that cannot be read.
    """
    from engine.datasets.captioned_sets import open_set

    if annotations is not None:
        opened = open_set(annotations.name, annotations.parent, images=images, split=split)
        pictures, missing = list(opened.iterate_pictures()), opened.missing
        if missing:
            report_missing(
                missing,
                f"could not be found in {images or annotations.parent}",
                allowed=allow_missing,
                total=len(missing) + len(pictures),
                consequence=SMALLER_GALLERY,
            )
        return pictures, len(missing)
    if images is not None:
        raise click.UsageError("--images needs --annotations. Give the JSON file with the captions.")
    pattern = Path(dataset).expanduser()
    if pattern.suffix != ".tar":
        raise DataError(
            f"{dataset!r} is not a .tar shard. For another set give --annotations FILE (ALBEF, LAVIS or Karpathy JSON) "
            "and --images FOLDER."
        )
    return list(open_set(pattern.name, pattern.parent).iterate_pictures()), 0


def _check_captions(samples: Sequence[CaptionedPicture]) -> None:
    """Raise DataError when pictures have no captions."""
    from engine.datasets.captioned_pictures import name_first_few

    bare = [sample.key for sample in samples if not sample.captions]
    if bare:
        raise DataError(
            f"{len(bare):,} of the {count_text(len(samples), 'photo')} have no captions ({name_first_few(bare)}). "
            "Leave them out of the set."
        )


def _report(request: Request, evaluation: Evaluation, facts: recall_report.Facts, as_json: bool) -> None:
    """Write the report to stdout, and a note when more candidates are asked for than there are photos."""
    num_photos = evaluation.report.num_photos
    if request.k > num_photos and evaluation.report.k:
        say_notes([f"--rerank is {request.k}, but there are only {num_photos} photos."])
    format_report = recall_report.format_json if as_json else recall_report.format_markdown
    write(format_report(facts, evaluation))
