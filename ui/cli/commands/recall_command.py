"""recall: how good a model is on a captioned set."""

from __future__ import annotations

import re
import resource
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.errors import DataError
from ui.cli.options import json_option, model_option
from ui.cli.terminal import STOPPED, say, write
from ui.reports import recall_report, text_forms
from ui.session import load_models

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from engine.datasets.captioned_pictures import CaptionedPicture
    from engine.evaluation.recall import Evaluation

SHOWN = 10
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
folder_option = click.Path(path_type=Path, file_okay=False)
file_option = click.Path(path_type=Path, dir_okay=False)


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
@click.option("--images", type=folder_option, help="Folder that the annotations' image names lie in.")
@click.option("--annotations", type=file_option, help="Captions: ALBEF/LAVIS or Karpathy JSON.")
@click.option("--split", default="test", show_default=True, help="Which part of a Karpathy file.")
@model_option
@click.option(
    "--rerank", default=128, show_default=True, type=click.IntRange(min=0), help="Candidates that ITM reads."
)
@click.option("--no-rerank", is_flag=True, help="ITC alone.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many pictures: a quick look.")
@click.option("--allow-missing", is_flag=True, help="Leave out photos that are not there or cannot be read.")
@click.option("--memory", type=Bytes(), default="2G", show_default=True, help="For what grows with the set.")
@click.option(
    "--cache", type=folder_option, help="Where finished phases are kept.  [default: in the user's cache]"
)
@click.option("--no-cache", is_flag=True, help="Keep nothing of this run.")
@click.option("--plot", type=file_option, help="Write a picture: recall against k, and what reranking moved.")
@click.option("--errors", type=click.IntRange(min=1), metavar="N", help="Write a page of the N worst misses.")
@click.option(
    "--errors-page", type=file_option, default=Path("recall-errors.html"), show_default=True, help="Its name."
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
    for path in (plot, errors_page if errors else None):
        if path is not None and not path.absolute().parent.is_dir():
            raise DataError(f"{path} cannot be written: its folder is not there.")
    if plot is not None:
        _check_plot(plot)
    samples, absent = _samples(dataset, images, annotations, split, allow_missing)
    samples = samples[:limit]
    _check_captions(samples)
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if no_cache else cache
            result, facts = _evaluate(
                samples, dataset, model, 0 if no_rerank else rerank, limit, allow_missing, memory, folder,
                not no_cache, absent,
            )  # fmt: skip
        except KeyboardInterrupt:
            say("Stopped." if no_cache else "Stopped; the same command goes on from here.")
            click.get_current_context().exit(STOPPED)
    if rerank > result.report.num_photos and result.report.k:
        say(f"Note: {rerank} candidates are asked for, there are {result.report.num_photos} photos.")
    write((recall_report.as_json if as_json else recall_report.markdown)(facts, result))
    if plot is not None:
        _draw(facts, result, plot)
    if errors:
        from engine.datasets.picture_reading import read_pictures

        def read(numbers: Sequence[int]) -> list[np.ndarray | None]:
            return read_pictures([samples[number] for number in numbers], recall_report.THUMBNAIL)

        _save(errors_page, recall_report.errors_page(facts, result, errors, read))


def _samples(
    dataset: str, images: Path | None, annotations: Path | None, split: str, allow_missing: bool
) -> tuple[list[CaptionedPicture], int]:
    """The pictures, and how many are left out since their files are not there."""
    from engine.datasets.caption_files import read_annotations
    from engine.datasets.tar_shards import find_shards, read_shards

    if annotations is not None:
        found = read_annotations(annotations, images or annotations.parent, split)
        if found.missing:
            total = len(found.missing) + len(found.pictures)
            _say_missing(found.missing, total, f"not below {images or annotations.parent}")
            if not allow_missing:
                raise DataError(_LEFT_OUT.format(n=len(found.missing), total=total))
        return found.pictures, len(found.missing)
    if images is not None:
        raise click.UsageError("--images needs --annotations: the JSON file with the captions.")
    pattern = Path(dataset).expanduser()
    if pattern.suffix != ".tar":
        raise DataError(
            f"{dataset!r} is no .tar shard; for other sets give --annotations FILE (ALBEF/LAVIS or Karpathy JSON) and "
            "--images FOLDER."
        )
    return list(read_shards(find_shards([pattern.name], pattern.parent))), 0


_LEFT_OUT = (
    "{n:,} of {total:,} photos are missing, and a smaller gallery gives better numbers: add them, or leave them out "
    "with --allow-missing (the report will say so)."
)


def _say_missing(names: Sequence[str], total: int, why: str) -> None:
    say(f"{len(names):,} of {text_forms.count_text(total, 'photo')} {why}:")
    for name in names[:SHOWN]:
        say(f"  {name}")
    if len(names) > SHOWN:
        say(f"  and {len(names) - SHOWN:,} more")


def _check_captions(samples: Sequence[CaptionedPicture]) -> None:
    bare = [sample.key for sample in samples if not sample.captions]
    if bare:
        raise DataError(
            f"{len(bare):,} of {text_forms.count_text(len(samples), 'picture')} have no captions (first: {bare[0]}); "
            "leave them out of the file."
        )


def _evaluate(
    samples: Sequence[CaptionedPicture], dataset: str, model: str | None, k: int, limit: int | None,
    allow_missing: bool, memory: int, cache: Path | None, keep: bool, num_absent: int,
) -> tuple[Evaluation, recall_report.Facts]:  # fmt: skip
    from engine.datasets.captioned_pictures import data_digest
    from engine.datasets.picture_reading import read_pictures
    from engine.evaluation.retrieval_cache import EvaluationCache
    from engine.evaluation.retrieval_protocol import Unreadable, evaluate_retrieval
    from engine.models.devices import dtype_name

    models = load_models(model)
    first = models[0]
    say(f"{text_forms.count_text(len(samples), 'picture')} for {first.name}.")
    kept = EvaluationCache((cache or _cache_folder()) / data_digest(samples)[:16], first)
    try:
        result = evaluate_retrieval(
            models, lambda start, stop: read_pictures(samples[start:stop], first.image_size),
            [sample.captions for sample in samples], kept, k=k, memory=memory, allow_missing=allow_missing, say=say,
        )  # fmt: skip
    except Unreadable as error:
        _say_missing([samples[number].key for number in error.numbers], len(samples), "could not be read")
        raise DataError(_LEFT_OUT.format(n=len(error.numbers), total=len(samples))) from error
    if result.report.num_missing:
        read = set(result.kept)
        gone = [sample.key for number, sample in enumerate(samples) if number not in read]
        _say_missing(gone, len(samples), "could not be read")
    if keep:
        say(f"What this run did is kept in {kept.folder} ({text_forms.size_text(kept.disk_bytes())}).")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    dtype = dtype_name(first.dtype)
    name = Path(dataset).name if dataset.endswith(".tar") else dataset
    facts = recall_report.Facts(
        name, first.name, first.digest, first.image_size, dtype, limit, num_absent, peak
    )
    return result, facts


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
        recall_report.plot(facts, result, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
    say(f"Wrote {path}.")


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
    say(f"Wrote {path}.")
