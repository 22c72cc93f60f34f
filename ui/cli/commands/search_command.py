"""search, similar, match, rerank: questions to an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import click

from engine.types import Hit, Results, TextResults
from ui.cli.options import (
    Output,
    captioner_option,
    captions_option,
    choose_output,
    index_option,
    json_option,
    model_option,
    output_options,
    paths_option,
    rerank_options,
    top_option,
)
from ui.cli.terminal import finish_with_failures, say, say_failures, write
from ui.cli.typed_input import check_text, make_absolute, read_paths, read_texts
from ui.reports import hit_formats
from ui.session import add_captions, open_searcher, open_searcher_with_or_without_index, resolve_index_folder

photo_argument = click.argument("photo", type=click.Path(path_type=Path))


@click.command()
@click.argument("text", nargs=-1, required=True)
@index_option
@model_option
@top_option
@rerank_options
@captions_option
@captioner_option
@click.option(
    "--caption-weight",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How much the cosine of TEXT with a photo's indexed caption counts in its score.",
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
    query = check_text(" ".join(text))
    searcher = open_searcher(resolve_index_folder(index), model, say)
    results = searcher.search(query, top=top, rerank=rerank, caption_weight=caption_weight)
    if captions:
        results = add_captions(results, searcher, captioner)
    show(results, output, captions)


@click.command()
@photo_argument
@index_option
@model_option
@top_option
@captions_option
@captioner_option
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
    """Find the photos that look like PHOTO, indexed or not."""
    searcher = open_searcher(resolve_index_folder(index), model, say)
    results = searcher.similar(make_absolute(photo), top=top)
    if captions:
        results = add_captions(results, searcher, captioner)
    show(results, output, captions)


@click.command()
@photo_argument
@click.option(
    "--texts",
    type=click.File("rb"),
    metavar="FILE",
    help="Texts to choose from, one a line, - for stdin.  [default: the indexed texts]",
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
    lines = None if texts is None else read_texts(texts)
    open_it = open_searcher if lines is None else open_searcher_with_or_without_index
    searcher = open_it(resolve_index_folder(index), model, say)
    show_texts(searcher.match(make_absolute(photo), lines, top=top, rerank=rerank), as_json)


@click.command()
@click.argument("text")
@click.argument("file", type=click.File("rb"), default="-")
@index_option
@model_option
@click.option("-k", "--top", type=click.IntRange(min=1), help="How many to show.  [default: all]")
@json_option
@paths_option
@click.option("-0", "--null", "as_nul", is_flag=True, help="Paths are closed by NUL bytes, in and out.")
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

    Their paths come from FILE or, without it, from stdin, one a line; with -0 each is closed by a NUL
    byte, as `find -print0` does. They may lie in the index or not.

    \b
        rclip -n 500 dog | qseek rerank "a dog shaking off water"
    """
    output = choose_output(as_json, as_paths, as_nul and not as_json)
    query = check_text(text)
    if file.isatty():
        say("Reading paths from the terminal, one a line; Ctrl-D ends them.")
    paths = read_paths(file, b"\0" if as_nul else b"\n")
    searcher = open_searcher_with_or_without_index(resolve_index_folder(index), model, say)
    show(searcher.rerank(query, paths, top=top), output)


def show(results: Results, output: Output, captions: bool = False) -> None:
    """Hits to stdout, the rest to stderr; ends with exit code 3 when photos could not be read."""
    for note in results.notes:
        say(f"Note: {note}")
    if not results.hits:
        say("No photo was found.")
    else:
        write(_rendered(results.hits, output, captions))
    if results.failures:
        say_failures(results.failures)
        finish_with_failures()


def _rendered(hits: Sequence[Hit], output: Output, captions: bool) -> str | bytes:
    if output is Output.JSON:
        return hit_formats.format_hits_json(hits)
    if output is Output.TABLE:
        return hit_formats.format_hits_table(hits, captions)
    return hit_formats.join_paths((hit.photo.path for hit in hits), b"\0" if output is Output.NUL else b"\n")


def show_texts(results: TextResults, as_json: bool) -> None:
    for note in results.notes:
        say(f"Note: {note}")
    if not results.hits:
        say("No text was found.")
        return
    write(
        hit_formats.format_text_hits_json(results.hits)
        if as_json
        else hit_formats.format_text_hits_table(results.hits)
    )
