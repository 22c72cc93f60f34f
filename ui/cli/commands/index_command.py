"""index, prune, failures: what fills an index and keeps it true."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from engine.errors import QueryError
from engine.types import Failure
from engine.wording import count_text
from ui import session
from ui.cli.options import Output, captioner_option, index_option, json_option, model_option, output_options
from ui.cli.progress_display import show_progress_bar
from ui.cli.terminal import STOPPED, finish_with_failures, say, say_failures, write
from ui.cli.typed_input import make_absolute, read_texts
from ui.reports import hit_formats, text_forms
from ui.reports.text_forms import duration_text
from ui.session import open_store, resolve_index_folder

if TYPE_CHECKING:
    from engine.progress import Progress
    from indexer.build import BuildReport
    from indexer.caption_run import CaptionReport

LEAST_ESTIMATE = 10_000_000  # bytes; below it nobody needs to know before


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="FOLDER...")
@index_option
@model_option
@click.option(
    "--texts",
    type=click.File("rb"),
    metavar="FILE",
    help="Index its lines as texts too; - is stdin.",
)
@click.option(
    "--features",
    type=click.Choice(["auto", "store", "int8", "none"]),
    default="auto",
    show_default=True,
    help="Keep what reranking reads of each photo, as float16 or int8: faster answers, more disk. "
    "auto: as float16 where it is small.",
)
@click.option("--reindex", is_flag=True, help="Make the index anew, with all its folders: for another model.")
@click.option("--retry", is_flag=True, help="Read photos again that failed before.")
@click.option(
    "--captions",
    is_flag=True,
    help="Write a caption of each photo that has none: it is shown with the photo, and searched.",
)
@captioner_option
@click.option("--workers", type=click.IntRange(min=0), help="Decoding processes.  [default: one a processor]")
@json_option
def index(
    folders: tuple[Path, ...],
    index: Path | None,
    model: str | None,
    texts: BinaryIO | None,
    features: str,
    reindex: bool,
    retry: bool,
    captions: bool,
    captioner: str | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Index the photos in each FOLDER; run again, only what changed.

    Ends with exit code 3 when photos could not be read; `qseek failures` lists them.
    """
    if not (folders or texts or reindex or captions):
        raise click.UsageError("Name a folder of photos, for example: qseek index ~/Pictures")
    from indexer.index_run import IndexRun, RunRequest, RunStopped

    request = RunRequest(
        folder=resolve_index_folder(index),
        roots=[make_absolute(folder) for folder in folders],
        model=model,
        features=features,
        texts=read_texts(texts) if texts else [],
        captions=captions,
        captioner=captioner,
        workers=workers,
        retry_failed=retry,
        remake=reindex,
    )
    try:
        report = IndexRun(request, session.load_model, session.load_photo_captioner, TerminalListener()).run()
    except RunStopped as stopped:
        kept = count_text(stopped.num_photos, "photo")
        which = "The old index still answers; the new one" if stopped.remake else "The index"
        say(f"Stopped. {which} holds {kept}; the same command goes on from there.")
        click.get_current_context().exit(STOPPED)
    _show_report(report.photos, report.captions, request.roots, as_json)


class TerminalListener:
    """Says on stderr what a run does; an `indexer.index_run.RunListener`."""

    def progress(self) -> AbstractContextManager[Callable[[Progress], None]]:
        return show_progress_bar()

    def photos_to_read(self, num_photos: int, num_bytes: int) -> None:
        if num_bytes >= LEAST_ESTIMATE:
            photos = count_text(num_photos, "photo")
            say(f"{photos} to read; they will take about {text_forms.size_text(num_bytes)}.")

    def texts_added(self, num_new: int, num_texts: int) -> None:
        say(f"{count_text(num_new, 'text')} added, {num_texts:,} in the index.")

    def captioner_chosen(self, name: str, num_replaced: Mapping[str, int]) -> None:
        for other, count in num_replaced.items():
            say(f"{count_text(count, 'caption')} by {other} will be replaced by {name}'s.")
        say(f"Captions by {name}:")

    def captions_missing(self, num_photos: int) -> None:
        say(f"{count_text(num_photos, 'photo')} without a caption; --captions writes them.")

    def remake_begins(self) -> None:
        say("Making the index anew; until it is complete the old one answers.")


def _show_report(
    report: BuildReport | None, written: CaptionReport | None, roots: Sequence[Path], as_json: bool
) -> None:
    """To stdout; ends with exit code 3 when photos could not be read."""
    captions = _caption_counts(written)
    if report is None:
        if written is not None:
            write(text_forms.json_line(captions) if as_json else _caption_line(written))
            _finish(written.failed)
        return
    counts = {
        "added": report.added,
        "changed": report.changed,
        "moved": report.moved,
        "removed": report.removed,
        "unchanged": report.unchanged,
        "copied": report.copied,
        "restored": report.restored,
        "failed": len(report.failed),
    }
    if not any(counts.values()):
        from indexer.index_run import no_photos_error

        raise QueryError("; ".join(report.notes)) if report.notes else no_photos_error(roots)
    for note in report.notes:
        say(f"Note: {note}")
    if as_json:
        totals = {"photos": report.num_photos, "disk_bytes": report.disk_bytes}
        write(text_forms.json_line({**counts, **totals, "seconds": round(report.seconds, 3), **captions}))
    else:
        shown = [f"{n:,} {name}" for name, n in counts.items() if n or name not in ("copied", "restored")]
        write(
            f"{', '.join(shown)}\n"
            f"{count_text(report.num_photos, 'photo')} in the index, "
            f"{text_forms.size_text(report.disk_bytes)} on disk, {duration_text(report.seconds)}\n"
            + ("" if written is None else _caption_line(written))
        )
    _finish([*report.failed, *(written.failed if written else ())], "; `qseek failures` lists them.")


def _finish(failed: Sequence[Failure], more: str = "") -> None:
    if failed:
        say_failures(failed, more)
        finish_with_failures()


def _caption_counts(written: CaptionReport | None) -> dict[str, int]:
    if written is None:
        return {}
    return {
        "captions_written": written.written,
        "captions_kept": written.num_kept,
        "captions_failed": len(written.failed),
    }


def _caption_line(written: CaptionReport) -> str:
    return (
        f"{count_text(written.written, 'caption')} written, {written.num_kept:,} kept, "
        f"{len(written.failed):,} failed, {duration_text(written.seconds)}\n"
    )


@click.command()
@index_option
def prune(index: Path | None) -> None:
    """Forget the photos whose files are gone.

    A search leaves them out anyway; until this is run they come back at once when their files do.
    """
    store = open_store(resolve_index_folder(index))
    with store.writing():
        num_missing = sum(record.missing for record in store.read_files().values())
        store.prune()
        store.optimize()
    photos, size = count_text(store.num_photos, "photo"), text_forms.size_text(store.measure_disk_bytes())
    write(f"{num_missing:,} forgotten, {photos} in the index, {size} on disk\n")


@click.command()
@index_option
@output_options
def failures(index: Path | None, output: Output) -> None:
    """List the photos that could not be read, and why."""
    records = open_store(resolve_index_folder(index)).read_failures()
    found = [Failure(path, records[path].reason) for path in sorted(records)]
    if not found:
        say("No photo failed.")
    elif output is Output.JSON:
        write(hit_formats.format_failures_json(found))
    elif output is Output.TABLE:
        write(hit_formats.format_failures_table(found))
    else:
        end = b"\0" if output is Output.NUL else b"\n"
        write(hit_formats.join_paths((one.path for one in found), end))
