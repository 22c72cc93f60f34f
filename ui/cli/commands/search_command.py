"""Define `qseek search`, `similar`, `match` and `rerank`, which find photos and texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import click

from engine.types import Hit, Results, TextResults
from ui.cli.options import (
    Output,
    captions_option,
    choose_output,
    index_option,
    json_option,
    model_option,
    output_options,
    paths_option,
    positive_type,
    rerank_options,
    shown_captioner_option,
    top_option,
)
from ui.cli.terminal import finish_with_failures, say, say_failures, say_notes, write
from ui.cli.typed_input import check_text, make_absolute, read_paths, read_texts
from ui.reports import hit_formats
from ui.session import (
    add_captions,
    open_searcher,
    open_searcher_with_or_without_index,
    resolve_index_folder,
)

photo_argument = click.argument("photo", type=click.Path(path_type=Path))


@click.command()
@click.argument("text", nargs=-1, required=True)
@index_option
@model_option
@top_option
@rerank_options
@captions_option
@shown_captioner_option
@click.option(
    "--caption-weight",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="WEIGHT",
    help="Add WEIGHT times the cosine of TEXT and a photo's indexed caption to its score.",
)
@output_options
def search(
    text: tuple[str, ...],
    index: Path | None,
    model: str | None,
    top: int,
    rerank: int,
    captions: bool,
    captioner: str | None,
    caption_weight: float,
    output: Output,
) -> None:
    """Find the photos that fit TEXT, best first."""
    joined_text = check_text(" ".join(text))
    searcher = open_searcher(resolve_index_folder(index), model, say)
    results = searcher.search(joined_text, top=top, rerank=rerank, caption_weight=caption_weight)
    if captions:
        results = add_captions(results, searcher, captioner)
    show_results(results, output, captions)


@click.command()
@photo_argument
@index_option
@model_option
@top_option
@captions_option
@shown_captioner_option
@output_options
def similar(
    photo: Path,
    index: Path | None,
    model: str | None,
    top: int,
    captions: bool,
    captioner: str | None,
    output: Output,
) -> None:
    """Find the photos that look like PHOTO, which need not be indexed."""
    searcher = open_searcher(resolve_index_folder(index), model, say)
    results = searcher.similar(make_absolute(photo), top=top)
    if captions:
        results = add_captions(results, searcher, captioner)
    show_results(results, output, captions)


@click.command()
@photo_argument
@click.option(
    "--texts",
    type=click.File("rb"),
    metavar="FILE",
    help="Choose from the texts in this file, one on each line; - reads stdin.",
    show_default="the indexed texts",
)
@index_option
@model_option
@top_option
@rerank_options
@json_option
def match(
    photo: Path,
    texts: BinaryIO | None,
    index: Path | None,
    model: str | None,
    top: int,
    rerank: int,
    as_json: bool,
) -> None:
    """Find the texts that fit PHOTO, best first."""
    given_texts = None if texts is None else read_texts(texts)
    open_for_match = open_searcher if given_texts is None else open_searcher_with_or_without_index
    searcher = open_for_match(resolve_index_folder(index), model, say)
    show_texts(searcher.match(make_absolute(photo), given_texts, top=top, rerank=rerank), as_json)


@click.command()
@click.argument("text")
@click.argument("file", type=click.File("rb"), default="-")
@index_option
@model_option
@click.option("-k", "--top", type=positive_type, metavar="N", help="Show the best N.", show_default="all")
@json_option
@paths_option
@click.option(
    "-0",
    "--null",
    "as_nul",
    is_flag=True,
    help="Read and print paths that are each ended by a NUL byte.",
)
def rerank(
    text: str,
    file: BinaryIO,
    index: Path | None,
    model: str | None,
    top: int | None,
    as_json: bool,
    as_paths: bool,
    as_nul: bool,
) -> None:
    """Put any photos in order by how well they fit TEXT.

    Their paths come from FILE, or from stdin without FILE, one on each line. With -0 each path is ended by a NUL byte,
    as `find -print0` does it. The photos need not be indexed.

    \b
        rclip -n 500 dog | qseek rerank "a dog shaking off water"
    """
    output = choose_output(as_json, as_paths, as_nul and not as_json)
    check_text(text)
    if file.isatty():
        say("Type the paths of photos, one on each line. End with Ctrl-D.")
    paths = read_paths(file, b"\0" if as_nul else b"\n")
    searcher = open_searcher_with_or_without_index(resolve_index_folder(index), model, say)
    show_results(searcher.rerank(text, paths, top=top), output)


def show_results(results: Results, output: Output, captions: bool = False) -> None:
    """Write the hits to stdout and the notes and failures to stderr.

    captions: whether a table shows captions. The command ends with exit code 3 when photos could not be read.
    """
    say_notes(results.notes)
    if not results.hits:
        say("No photo was found.")
    else:
        write(_format_hits(results.hits, output, captions))
    if results.failures:
        say_failures(results.failures)
        finish_with_failures()


def _format_hits(hits: Sequence[Hit], output: Output, captions: bool) -> str | bytes:
    if output is Output.JSON:
        return hit_formats.format_hits_json(hits)
    if output is Output.TABLE:
        return hit_formats.format_hits_table(hits, captions)
    ending = b"\0" if output is Output.NUL else b"\n"
    return hit_formats.join_paths((hit.photo.path for hit in hits), ending)


def show_texts(results: TextResults, as_json: bool) -> None:
    """Write the texts that fit a photo to stdout, and the notes to stderr."""
    say_notes(results.notes)
    if not results.hits:
        say("No text was found.")
        return
    format_hits = hit_formats.format_text_hits_json if as_json else hit_formats.format_text_hits_table
    write(format_hits(results.hits))
