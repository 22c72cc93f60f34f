"""recall: how good a model is on a captioned set."""

from __future__ import annotations

import re
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.errors import DataError
from engine.types import RERANKED
from engine.wording import count_text
from ui.cli.options import (
    allow_missing_option,
    file_type,
    folder_type,
    json_option,
    limit_option,
    model_option,
    split_option,
)
from ui.cli.progress_display import show_progress_bar
from ui.cli.terminal import STOPPED, STOPPED_AND_RESUMABLE, report_missing, say, write
from ui.reports import recall_report
from ui.reports.text_forms import size_text
from ui.session import load_model_on_each_gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from engine.datasets.captioned_pictures import CaptionedPicture
    from engine.evaluation.recall import Evaluation
    from engine.evaluation.retrieval_cache import EvaluationCache
    from engine.models.retrieval_model import RetrievalModel

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SMALLER_GALLERY = ", and a smaller gallery gives better numbers"


class Bytes(click.ParamType[int]):
    """8G, 500M."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", str(value).strip(), re.IGNORECASE)
        if not found:
            self.fail(f"{value!r} is no amount of memory; write for example 8G or 500M.", param, ctx)
        return int(float(found[1]) * UNITS[found[2].upper()])


@click.command()
@click.argument("dataset")
@click.option("--images", type=folder_type, help="Folder that the annotations' image names lie in.")
@click.option("--annotations", type=file_type, help="Captions: ALBEF/LAVIS or Karpathy JSON.")
@split_option
@model_option
@click.option(
    "--rerank",
    default=RERANKED,
    show_default=True,
    type=click.IntRange(min=0),
    help="Candidates that ITM reads.",
)
@click.option("--no-rerank", is_flag=True, help="ITC alone.")
@limit_option("pictures")
@allow_missing_option
@click.option("--memory", type=Bytes(), default="2G", show_default=True, help="For what grows with the set.")
@click.option(
    "--cache", type=folder_type, help="Where finished phases are kept.  [default: in the user's cache]"
)
@click.option("--no-cache", is_flag=True, help="Keep nothing of this run.")
@click.option("--plot", type=file_type, help="Write a picture: recall against k, and what reranking moved.")
@click.option("--errors", type=click.IntRange(min=1), metavar="N", help="Write a page of the N worst misses.")
@click.option(
    "--errors-page", type=file_type, default=Path("recall-errors.html"), show_default=True, help="Its name."
)
@json_option
def recall(
    dataset: str, images: Path | None, annotations: Path | None, split: str, model: str | None, rerank: int,
    no_rerank: bool, limit: int | None, allow_missing: bool, memory: int, cache: Path | None, no_cache: bool,
    plot: Path | None, errors: int | None, errors_page: Path, as_json: bool,
) -> None:  # fmt: skip
    """Recall@1, 5, 10 of a captioned set, photo to text (TR) and text to photo (IR), before and after reranking.

    DATASET is a WebDataset shard (a .tar file, or a pattern of them in quotes), or, with --annotations and
    --images, a name for the report; beside `flickr30k` and `coco` stand BLIP-2's published numbers. A run that was
    stopped goes on where it was.

    \b
        qseek recall flickr30k --annotations flickr30k_test.json --images ~/flickr30k-images
        qseek recall coco --annotations dataset_coco.json --images ~/coco
    """
    if no_cache and cache:
        raise click.UsageError(
            "--cache says where to keep phases, --no-cache to keep none: give one of them."
        )
    _check_outputs(plot, errors_page if errors else None)
    samples, num_absent = _samples(dataset, images, annotations, split, allow_missing)
    samples = samples[:limit]
    _check_captions(samples)
    name = Path(dataset).name if dataset.endswith(".tar") else dataset
    request = Request(
        name, samples, model, 0 if no_rerank else rerank, limit, allow_missing, memory, num_absent
    )
    result, facts = _evaluate_or_stop(request, cache, keep=not no_cache)
    if rerank > result.report.num_photos and result.report.k:
        say(f"Note: {rerank} candidates are asked for, there are {result.report.num_photos} photos.")
    write((recall_report.format_json if as_json else recall_report.format_markdown)(facts, result))
    if plot is not None:
        _draw(facts, result, plot)
    if errors:
        _write_errors_page(errors_page, facts, result, errors, samples)


@dataclass(frozen=True)
class Request:
    """What is evaluated. name: of the set, for the report. k: candidates that ITM reads, 0 for none. limit: only the
    first so many pictures. memory: bytes. num_absent: pictures that were left out before."""

    name: str
    samples: Sequence[CaptionedPicture]
    model: str | None
    k: int
    limit: int | None
    allow_missing: bool
    memory: int
    num_absent: int


def _check_outputs(plot: Path | None, errors_page: Path | None) -> None:
    """Raise DataError for a file that could not be written in the end."""
    for path in (plot, errors_page):
        if path is not None and not path.absolute().parent.is_dir():
            raise DataError(f"{path} cannot be written: its folder is not there.")
    if plot is not None:
        _check_plot(plot)


def _evaluate_or_stop(
    request: Request, cache: Path | None, keep: bool
) -> tuple[Evaluation, recall_report.Facts]:
    """Evaluate, with the finished phases in a folder that stays or in one that goes. Ctrl-C ends the command."""
    with ExitStack() as stack:
        try:
            if not keep:
                cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            return _evaluate(request, cache or _cache_folder(), keep)
        except KeyboardInterrupt:
            say(STOPPED_AND_RESUMABLE if keep else "Stopped.")
            click.get_current_context().exit(STOPPED)


def _samples(
    dataset: str, images: Path | None, annotations: Path | None, split: str, allow_missing: bool
) -> tuple[list[CaptionedPicture], int]:
    """The pictures, and how many are left out since their files are not there."""
    from engine.datasets.captioned_sets import open_set

    if annotations is not None:
        opened = open_set(annotations.name, annotations.parent, images=images, split=split)
        pictures, missing = list(opened.iterate_pictures()), opened.missing
        if missing:
            total = len(missing) + len(pictures)
            report_missing(
                missing, f"not below {images or annotations.parent}", allowed=allow_missing, total=total,
                because=SMALLER_GALLERY,
            )  # fmt: skip
        return pictures, len(missing)
    if images is not None:
        raise click.UsageError("--images needs --annotations: the JSON file with the captions.")
    pattern = Path(dataset).expanduser()
    if pattern.suffix != ".tar":
        raise DataError(
            f"{dataset!r} is no .tar shard; for other sets give --annotations FILE (ALBEF/LAVIS or Karpathy JSON) and "
            "--images FOLDER."
        )
    return list(open_set(pattern.name, pattern.parent).iterate_pictures()), 0


def _check_captions(samples: Sequence[CaptionedPicture]) -> None:
    bare = [sample.key for sample in samples if not sample.captions]
    if bare:
        raise DataError(
            f"{len(bare):,} of {count_text(len(samples), 'picture')} have no captions (first: {bare[0]}); "
            "leave them out of the file."
        )


def _evaluate(request: Request, cache_root: Path, keep: bool) -> tuple[Evaluation, recall_report.Facts]:
    """Evaluate -> the numbers, and what a report says besides. cache_root: the folder of all sets' caches."""
    from engine.datasets.captioned_pictures import compute_data_digest
    from engine.evaluation.retrieval_cache import EvaluationCache
    from engine.models.devices import get_dtype_name

    models = load_model_on_each_gpu(request.model)
    first = models[0]
    say(f"{count_text(len(request.samples), 'picture')} for {first.name}.")
    cache = EvaluationCache(cache_root / compute_data_digest(request.samples)[:16], first)
    result = _recall(models, request, cache)
    if keep:
        say(f"What this run did is kept in {cache.folder} ({size_text(cache.measure_disk_bytes())}).")
    facts = recall_report.Facts(
        request.name, first.name, first.digest, first.image_size, get_dtype_name(first.dtype), request.limit,
        request.num_absent, peak_memory(),
    )  # fmt: skip
    return result, facts


def _recall(models: Sequence[RetrievalModel], request: Request, cache: EvaluationCache) -> Evaluation:
    """Run the protocol, and say which pictures could not be read; raise DataError unless that is allowed."""
    from engine.datasets.picture_reading import read_pictures
    from engine.evaluation.retrieval_protocol import UnreadablePicturesError, evaluate_retrieval

    samples, size = request.samples, models[0].image_size

    def report_unreadable(numbers: Sequence[int]) -> None:
        report_missing(
            [samples[number].key for number in numbers], "could not be read", allowed=request.allow_missing,
            total=len(samples), because=SMALLER_GALLERY,
        )  # fmt: skip

    try:
        result = evaluate_retrieval(
            models, lambda start, stop: read_pictures(samples[start:stop], size),
            [sample.captions for sample in samples], cache, k=request.k, memory=request.memory,
            allow_missing=request.allow_missing, show_progress=show_progress_bar,
        )  # fmt: skip
    except UnreadablePicturesError as error:
        report_unreadable(error.numbers)
        raise
    if result.report.num_missing:
        report_unreadable(sorted({*range(len(samples))} - {*result.readable_numbers}))
    return result


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process has held, None where that cannot be known."""
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("qseek", appauthor=False) / "recall"


def _check_plot(path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError("A plot needs matplotlib: pip install 'qseek[plot]'.") from None
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise DataError(f"{path} should end in one of: {', '.join(sorted(known))}.")


def _draw(facts: recall_report.Facts, result: Evaluation, path: Path) -> None:
    try:
        recall_report.draw_plot(facts, result, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
    say(f"Wrote {path}.")


def _write_errors_page(
    path: Path,
    facts: recall_report.Facts,
    result: Evaluation,
    count: int,
    samples: Sequence[CaptionedPicture],
) -> None:
    from engine.datasets.picture_reading import read_pictures

    def read(numbers: Sequence[int]) -> list[np.ndarray | None]:
        return read_pictures([samples[number] for number in numbers], recall_report.THUMBNAIL)

    try:
        path.write_text(recall_report.format_errors_page(facts, result, count, read), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
    say(f"Wrote {path}.")
