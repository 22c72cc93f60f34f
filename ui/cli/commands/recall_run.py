"""Run the evaluation of `qseek recall`: load the model, keep finished phases, and name photos that cannot be read."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.wording import count_text
from ui.cli.progress_display import show_progress
from ui.cli.terminal import (
    STOPPED_AND_RESUMABLE_TEXT,
    STOPPED_TEXT,
    finish_stopped,
    report_missing,
    say,
)
from ui.reports import recall_report
from ui.reports.text_forms import size_text
from ui.session import load_model_on_each_gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.datasets.captioned_pictures import CaptionedPicture
    from engine.evaluation.recall import Evaluation
    from engine.evaluation.retrieval_cache import EvaluationCache
    from engine.models.retrieval_model import RetrievalModel

SMALLER_GALLERY = "A smaller gallery gives better numbers."


@dataclass(frozen=True)
class Request:
    """The settings of an evaluation.

    name: the name of the set, for the report. model: name or folder of a model, None for the bundled one. k: number of
    candidates that ITM reranks, 0 for none. limit: number of pictures to use from the beginning of the set, None for
    all. memory: in bytes. num_absent: number of pictures that were left out because their files are missing.
    """

    name: str
    samples: Sequence[CaptionedPicture]
    model: str | None
    k: int
    limit: int | None
    allow_missing: bool
    memory: int
    num_absent: int


def evaluate_or_stop(
    request: Request, cache: Path | None, keep: bool
) -> tuple[Evaluation, recall_report.Facts]:
    """Evaluate, with the finished phases in a folder that stays or in one that is removed. Ctrl-C ends the command.

    cache: the folder of all sets' finished phases, None for the user's. keep: whether finished phases stay.
    """
    with ExitStack() as stack:
        try:
            if not keep:
                cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            return _evaluate(request, cache or _get_cache_folder(), keep)
        except KeyboardInterrupt:
            finish_stopped(STOPPED_AND_RESUMABLE_TEXT if keep else STOPPED_TEXT)


def _evaluate(request: Request, cache_root: Path, keep: bool) -> tuple[Evaluation, recall_report.Facts]:
    """Return the result of the evaluation, and what a report says of the run. See `evaluate_or_stop`."""
    from engine.datasets.captioned_pictures import compute_data_digest
    from engine.evaluation.retrieval_cache import EvaluationCache
    from engine.models.devices import get_dtype_name

    models = load_model_on_each_gpu(request.model)
    first = models[0]
    say(f"{count_text(len(request.samples), 'photo')} for {first.name}.")
    cache = EvaluationCache(cache_root / compute_data_digest(request.samples)[:16], first)
    evaluation = _run_protocol(models, request, cache)
    if keep:
        say(f"The finished phases are kept in {cache.folder} ({size_text(cache.measure_disk_bytes())}).")
    facts = recall_report.Facts(
        dataset=request.name,
        model=first.name,
        digest=first.digest,
        pixels=first.image_size,
        dtype=get_dtype_name(first.dtype),
        limit=request.limit,
        num_absent=request.num_absent,
        peak_bytes=measure_peak_memory(),
    )
    return evaluation, facts


def _run_protocol(models: Sequence[RetrievalModel], request: Request, cache: EvaluationCache) -> Evaluation:
    """Run the protocol, and say which pictures could not be read. Raises DataError unless that is allowed."""
    from engine.datasets.picture_reading import read_pictures
    from engine.evaluation.retrieval_protocol import UnreadablePicturesError, evaluate_retrieval

    samples, size = request.samples, models[0].image_size

    def report_unreadable(numbers: Sequence[int]) -> None:
        report_missing(
            [samples[number].key for number in numbers],
            "could not be read",
            allowed=request.allow_missing,
            total=len(samples),
            consequence=SMALLER_GALLERY,
        )

    try:
        evaluation = evaluate_retrieval(
            models,
            lambda start, stop: read_pictures(samples[start:stop], size),
            [sample.captions for sample in samples],
            cache,
            k=request.k,
            memory=request.memory,
            allow_missing=request.allow_missing,
            show_progress=show_progress,
        )
    except UnreadablePicturesError as error:
        report_unreadable(error.numbers)
        raise
    if evaluation.report.num_missing:
        report_unreadable(sorted({*range(len(samples))} - {*evaluation.readable_numbers}))
    return evaluation


def measure_peak_memory() -> int | None:
    """Return the most bytes of memory that this process has held, None where that cannot be known."""
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _get_cache_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("qseek", appauthor=False) / "recall"
