"""index, prune, failures: what fills an index and keeps it true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from engine.errors import IndexStateError, QueryError
from engine.types import Failure
from ui import render
from ui.captioning import caption_index, say_missing
from ui.opening import has_index, index_folder, load_model, make_searcher, open_store
from ui.options import Output, captioner_option, index_option, json_option, model_option, output_options
from ui.progress import duration_text, shown_progress
from ui.reading import absolute, read_texts
from ui.reindexing import Contents, carry_captions, contents_of, finish_interrupted, new_store, take_its_place
from ui.terminal import STOPPED, finish_with_failures, say, say_failures, write

if TYPE_CHECKING:
    from engine.index.manifest import Manifest
    from engine.index.store import Store
    from engine.models.retrieval_model import RetrievalModel
    from engine.progress import Progress
    from indexer.build import BuildReport
    from indexer.captions import CaptionReport

AUTO_FEATURE_BYTES = 150_000  # a photo; --features auto keeps up to this: mini's, not ViT-g's 0.72 MB
TEXTS_AT_ONCE = 1024
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
    target = index_folder(index)
    roots = [absolute(folder) for folder in folders]
    lines = read_texts(texts) if texts else []
    finish_interrupted(target)
    if reindex and not has_index(target) and not roots:
        raise IndexStateError(f"there is no index at {target} to make anew; name a folder of photos")
    wanted = _Wanted(lines, captions, captioner, workers, retry)
    if reindex and has_index(target):
        report, written = _reindex(target, roots, model, features, wanted)
    else:
        if not (roots or has_index(target)) and captions:
            raise IndexStateError(f"there is no index at {target} to caption; name a folder of photos")
        store, loaded = _open_or_create(target, roots, model, features)
        report, written = _fill(store, loaded, roots, wanted)
    _show_report(report, written, roots, as_json)


@dataclass(frozen=True)
class _Wanted:
    """What the run shall do beside taking in photos."""

    lines: Sequence[str]
    captions: bool
    captioner: str | None
    workers: int | None
    retry: bool


def _open_or_create(
    folder: Path, roots: Sequence[Path], model: str | None, features: str
) -> tuple[Store, RetrievalModel]:
    """Nothing is created for a folder that is not there or holds no photo."""
    if has_index(folder):
        store = open_store(folder)
        loaded = load_model(model or store.manifest.model)
        store.manifest.check_same(_manifest(loaded, features))
        if features not in ("auto", store.manifest.features):
            raise IndexStateError(
                f"the index was made with --features {store.manifest.features}; to change it to {features} "
                "give --reindex as well"
            )
        return store, loaded
    from engine.index.store import Store
    from indexer.scan import scan

    if not any([next(scan(root), None) for root in roots]) and roots:
        raise _no_photos(roots)
    loaded = load_model(model)
    return Store.create(folder, _manifest(loaded, features)), loaded


def _manifest(model: RetrievalModel, features: str) -> Manifest:
    """features: "auto" keeps the patches where they are small."""
    from engine.index.manifest import Manifest

    manifest = Manifest.for_model(model, "store" if features == "auto" else features)
    if features == "auto" and manifest.feature_bytes > AUTO_FEATURE_BYTES:
        return Manifest.for_model(model, "none")
    return manifest


def _no_photos(roots: Sequence[Path]) -> QueryError:
    from engine.pictures.formats import PHOTO_SUFFIXES

    return QueryError(
        f"no photos in {', '.join(map(str, roots))}; looked for files that end in "
        f"{' '.join(sorted(PHOTO_SUFFIXES))}, hidden ones left out"
    )


def _fill(
    store: Store,
    model: RetrievalModel,
    roots: Sequence[Path],
    wanted: _Wanted,
    old: Contents | None = None,
) -> tuple[BuildReport | None, CaptionReport | None]:
    """Index photos, then texts, then captions; None without roots, without captions. Ctrl-C says what is kept and ends
    with its exit code. old: of the index that this one is to replace."""
    report, written = None, None
    try:
        if roots:
            report = _build(store, model, roots, wanted.workers, wanted.retry)
        _add_texts(store, model, wanted.lines if old is None else [*old.texts, *wanted.lines])
        if old is not None:
            carry_captions(old, store, model)
        if wanted.captions:
            written = caption_index(store, model, roots, wanted.captioner, wanted.workers)
        else:
            say_missing(store)
        _save_vectors(store)
    except KeyboardInterrupt:
        kept = render.count_text(store.num_photos, "photo")
        which = "The index" if old is None else "The old index still answers; the new one"
        say(f"Stopped. {which} holds {kept}; the same command goes on from there.")
        click.get_current_context().exit(STOPPED)
    return report and replace(report, disk_bytes=store.disk_bytes()), written


def _save_vectors(store: Store) -> None:
    """Write FAISS' files now, so that the first search finds them."""
    from engine.vectors.table_indexes import open_caption_index, open_photo_index, open_text_index

    open_photo_index(store)
    open_text_index(store)
    if store.captions_version:
        open_caption_index(store)


def _build(
    store: Store, model: RetrievalModel, roots: Sequence[Path], workers: int | None, retry: bool
) -> BuildReport:
    from engine.models.photo_encoder import PhotoEncoder
    from indexer.build import build_index

    encoder = PhotoEncoder(model, store.manifest.features)
    with shown_progress() as update:

        def on_progress(progress: Progress) -> None:
            if progress.done == 0:
                _say_estimate(progress.total, store)
            update(progress)

        return build_index(
            roots, store, encoder, workers=workers, retry_failed=retry, on_progress=on_progress
        )


def _say_estimate(num_new: int, store: Store) -> None:
    from indexer.build import estimate

    num_bytes = estimate(num_new, store.manifest)
    if num_bytes >= LEAST_ESTIMATE:
        photos = render.count_text(num_new, "photo")
        say(f"{photos} to read; they will take about {render.size_text(num_bytes)}.")


def _add_texts(store: Store, model: RetrievalModel, lines: Sequence[str]) -> None:
    if not lines:
        return
    searcher = make_searcher(store, model)
    num_new = 0
    for start in range(0, len(lines), TEXTS_AT_ONCE):
        num_new += searcher.add_texts(lines[start : start + TEXTS_AT_ONCE])
    say(f"{render.count_text(num_new, 'text')} added, {store.num_texts:,} in the index.")


def _reindex(
    folder: Path, roots: Sequence[Path], model: str | None, features: str, wanted: _Wanted
) -> tuple[BuildReport | None, CaptionReport | None]:
    from engine.index.writer_lock import locked

    with locked(folder):
        contents = contents_of(folder, roots)
        loaded = load_model(model or contents.model)
        store = new_store(folder, _manifest(loaded, features))
        say("Making the index anew; until it is complete the old one answers.")
        reports = _fill(store, loaded, contents.roots, replace(wanted, retry=False), contents)
        take_its_place(folder)
    return reports


def _show_report(
    report: BuildReport | None, written: CaptionReport | None, roots: Sequence[Path], as_json: bool
) -> None:
    """To stdout; ends with exit code 3 when photos could not be read."""
    captions = _caption_counts(written)
    if report is None:
        if written is not None:
            write(render.json_line(captions) if as_json else _caption_line(written))
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
        raise QueryError("; ".join(report.notes)) if report.notes else _no_photos(roots)
    for note in report.notes:
        say(f"Note: {note}")
    if as_json:
        totals = {"photos": report.num_photos, "disk_bytes": report.disk_bytes}
        write(render.json_line({**counts, **totals, "seconds": round(report.seconds, 3), **captions}))
    else:
        shown = [f"{n:,} {name}" for name, n in counts.items() if n or name not in ("copied", "restored")]
        write(
            f"{', '.join(shown)}\n"
            f"{render.count_text(report.num_photos, 'photo')} in the index, "
            f"{render.size_text(report.disk_bytes)} on disk, {duration_text(report.seconds)}\n"
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
        "captions_kept": written.kept,
        "captions_failed": len(written.failed),
    }


def _caption_line(written: CaptionReport) -> str:
    return (
        f"{render.count_text(written.written, 'caption')} written, {written.kept:,} kept, "
        f"{len(written.failed):,} failed, {duration_text(written.seconds)}\n"
    )


@click.command()
@index_option
def prune(index: Path | None) -> None:
    """Forget the photos whose files are gone.

    A search leaves them out anyway; until this is run they come back at once when their files do.
    """
    store = open_store(index_folder(index))
    with store.writing():
        num_missing = sum(record.missing for record in store.files().values())
        store.prune()
        store.optimize()
    photos, size = render.count_text(store.num_photos, "photo"), render.size_text(store.disk_bytes())
    write(f"{num_missing:,} forgotten, {photos} in the index, {size} on disk\n")


@click.command()
@index_option
@output_options
def failures(index: Path | None, output: Output) -> None:
    """List the photos that could not be read, and why."""
    records = open_store(index_folder(index)).failures()
    found = [Failure(path, records[path].reason) for path in sorted(records)]
    if not found:
        say("No photo failed.")
    elif output is Output.JSON:
        write(render.failures_json(found))
    elif output is Output.TABLE:
        write(render.failures_table(found))
    else:
        end = b"\0" if output is Output.NUL else b"\n"
        write(render.path_bytes((one.path for one in found), end))
