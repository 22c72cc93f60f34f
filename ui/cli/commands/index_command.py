"""Define `qseek index`, `prune` and `failures`, which fill an index and keep it up to date."""

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
from ui.cli.progress_display import show_progress
from ui.cli.terminal import finish_stopped, finish_with_failures, say, say_failures, say_notes, write
from ui.cli.typed_input import make_absolute, read_texts
from ui.reports import hit_formats
from ui.reports.text_forms import duration_text, json_line, size_text
from ui.session import open_store, resolve_index_folder

if TYPE_CHECKING:
    from engine.progress import Progress
    from indexer.build import BuildReport
    from indexer.caption_run import CaptionReport

MIN_ANNOUNCED_BYTES = 10_000_000
"""Disk space from which it is announced before the photos are read; less of it interests nobody."""


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="FOLDER...")
@index_option
@model_option
@click.option(
    "--texts",
    type=click.File("rb"),
    metavar="FILE",
    help="Index each line of this file as a text, too; - reads stdin.",
)
@click.option(
    "--features",
    type=click.Choice(["auto", "store", "int8", "none"]),
    default="auto",
    show_default=True,
    help="Keep what reranking reads of each photo: as float16 (store), as int8, or not at all (none). Keeping it makes "
    "answers faster and takes disk space. auto keeps it as float16 where it is small.",
)
@click.option(
    "--reindex", is_flag=True, help="Make the index anew with all its folders; another model needs this."
)
@click.option("--retry", is_flag=True, help="Read the photos again that failed before.")
@click.option(
    "--captions",
    is_flag=True,
    help="Write a caption of each photo that has none. Captions are shown with the photos and searched.",
)
@captioner_option
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Read photos in N processes.",
    show_default="one for each processor",
)
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
    """Index the photos in each FOLDER.

    A second run reads only what has changed. The command ends with exit code 3 when some photos could not be read;
    `qseek failures` lists them.
    """
    if not (folders or texts or reindex or captions):
        raise click.UsageError("Name a folder of photos, for example `qseek index ~/Pictures`.")
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
        photos = count_text(stopped.num_photos, "photo")
        subject = "The old index still answers, and the new one" if stopped.remake else "The index"
        finish_stopped(f"Stopped. {subject} holds {photos}. The same command goes on from here.")
    _show_report(report.photos, report.captions, request.roots, as_json)


class TerminalListener:
    """Says on stderr what a run does; an `indexer.index_run.RunListener`."""

    def progress(self) -> AbstractContextManager[Callable[[Progress], None]]:
        return show_progress()

    def photos_to_read(self, num_photos: int, num_bytes: int) -> None:
        if num_bytes >= MIN_ANNOUNCED_BYTES:
            say(
                f"{count_text(num_photos, 'photo')} to read, which will take about {size_text(num_bytes)} on disk."
            )

    def texts_added(self, num_new: int, num_texts: int) -> None:
        say(f"{count_text(num_new, 'text')} added, {num_texts:,} in the index.")

    def captioner_chosen(self, name: str, num_replaced: Mapping[str, int]) -> None:
        for other, count in num_replaced.items():
            say(f"{count_text(count, 'caption')} by {other} will be replaced by captions by {name}.")
        say(f"Captions by {name}:")

    def captions_missing(self, num_photos: int) -> None:
        have = "has" if num_photos == 1 else "have"
        say(f"{count_text(num_photos, 'photo')} {have} no caption. `qseek index --captions` writes captions.")

    def remake_begins(self) -> None:
        say("The index is made anew. The old one answers until the new one is complete.")


def _show_report(
    report: BuildReport | None, caption_report: CaptionReport | None, roots: Sequence[Path], as_json: bool
) -> None:
    """Write what a run did to stdout; end with exit code 3 when photos could not be read.

    Raises QueryError when the run found no photo in the roots.
    """
    captions = _count_captions(caption_report)
    if report is None:
        if caption_report is not None:
            write(json_line(captions) if as_json else _format_captions(caption_report))
            _finish(caption_report.failed)
        return
    counts = _count_photos(report)
    if not any(counts.values()):
        from indexer.index_run import no_photos_error

        raise QueryError(" ".join(report.notes)) if report.notes else no_photos_error(roots)
    say_notes(report.notes)
    if as_json:
        totals = {"photos": report.num_photos, "disk_bytes": report.disk_bytes}
        write(json_line({**counts, **totals, "seconds": round(report.seconds, 3), **captions}))
    else:
        write(
            _format_photos(report, counts)
            + ("" if caption_report is None else _format_captions(caption_report))
        )
    failures = [*report.failed, *(caption_report.failed if caption_report else ())]
    _finish(failures, "; `qseek failures` lists them.")


def _count_photos(report: BuildReport) -> dict[str, int]:
    return {
        "added": report.added,
        "changed": report.changed,
        "moved": report.moved,
        "removed": report.removed,
        "unchanged": report.unchanged,
        "copied": report.copied,
        "restored": report.restored,
        "failed": len(report.failed),
    }


def _format_photos(report: BuildReport, counts: Mapping[str, int]) -> str:
    """Return two lines: what the run did, and what the index holds now. Rare counts are left out when they are 0."""
    rare = ("copied", "restored")
    parts = [f"{count:,} {name}" for name, count in counts.items() if count or name not in rare]
    return (
        f"{', '.join(parts)}\n"
        f"{count_text(report.num_photos, 'photo')} in the index, {size_text(report.disk_bytes)} on disk, "
        f"{duration_text(report.seconds)}\n"
    )


def _count_captions(report: CaptionReport | None) -> dict[str, int]:
    if report is None:
        return {}
    return {
        "captions_written": report.written,
        "captions_kept": report.num_kept,
        "captions_failed": len(report.failed),
    }


def _format_captions(report: CaptionReport) -> str:
    return (
        f"{count_text(report.written, 'caption')} written, {report.num_kept:,} kept, {len(report.failed):,} failed, "
        f"{duration_text(report.seconds)}\n"
    )


def _finish(failures: Sequence[Failure], more: str = "") -> None:
    if failures:
        say_failures(failures, more)
        finish_with_failures()


@click.command()
@index_option
def prune(index: Path | None) -> None:
    """Forget the photos whose files are gone.

    Searches leave these photos out anyway. Until `qseek prune` is run they come back at once when their files do.
    """
    store = open_store(resolve_index_folder(index))
    with store.writing():
        num_missing = sum(record.missing for record in store.read_files().values())
        store.prune()
        store.optimize()
    photos, size = count_text(store.num_photos, "photo"), size_text(store.measure_disk_bytes())
    write(f"{num_missing:,} forgotten, {photos} in the index, {size} on disk\n")


@click.command()
@index_option
@output_options
def failures(index: Path | None, output: Output) -> None:
    """List the photos that could not be read, and why."""
    records = open_store(resolve_index_folder(index)).read_failures()
    failed_photos = [Failure(path, records[path].reason) for path in sorted(records)]
    if not failed_photos:
        say("Every photo could be read.")
    elif output is Output.JSON:
        write(hit_formats.format_failures_json(failed_photos))
    elif output is Output.TABLE:
        write(hit_formats.format_failures_table(failed_photos))
    else:
        ending = b"\0" if output is Output.NUL else b"\n"
        write(hit_formats.join_paths((failure.path for failure in failed_photos), ending))
