"""Write the files of `qseek recall`: the plot and the page of the worst misses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import DataError
from ui.cli.terminal import say
from ui.reports import recall_report

if TYPE_CHECKING:
    import numpy as np

    from engine.datasets.captioned_pictures import CaptionedPicture
    from engine.evaluation.recall import Evaluation


def check_outputs(plot: Path | None, errors_page: Path | None) -> None:
    """Raise DataError before the evaluation for a file that could not be written after it."""
    for path in (plot, errors_page):
        if path is not None and not path.absolute().parent.is_dir():
            raise DataError(f"{path} cannot be written: its folder is missing. Make the folder.")
    if plot is not None:
        _check_plot(plot)


def _check_plot(path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError("A plot needs matplotlib. Install it with: pip install 'qseek[plot]'.") from None
    suffixes = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in suffixes:
        raise DataError(f"{path} should end in one of: {', '.join(sorted(suffixes))}.")


def write_plot(path: Path, facts: recall_report.Facts, evaluation: Evaluation) -> None:
    """Draw the plot of a report to a file. Raises DataError when it cannot be written."""
    try:
        recall_report.draw_plot(facts, evaluation, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}.") from error
    say(f"Wrote {path}.")


def write_errors_page(
    path: Path,
    facts: recall_report.Facts,
    evaluation: Evaluation,
    num_errors: int,
    samples: Sequence[CaptionedPicture],
) -> None:
    """Write the page of the `num_errors` worst misses. Raises DataError when it cannot be written."""
    from engine.datasets.picture_reading import read_pictures

    def read_thumbnails(numbers: Sequence[int]) -> list[np.ndarray | None]:
        return read_pictures([samples[number] for number in numbers], recall_report.THUMBNAIL_SIDE)

    try:
        page = recall_report.format_errors_page(facts, evaluation, num_errors, read_thumbnails)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}.") from error
    say(f"Wrote {path}.")
