"""Define `qseek caption`, which writes captions of photos or answers a question about them."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from engine.errors import DataError
from engine.types import Failure, Photo
from ui import session
from ui.cli.options import captioner_model_option, index_option, json_option, positive_type
from ui.cli.terminal import finish_with_failures, say_failures, write
from ui.cli.typed_input import check_text, make_absolute, read_paths
from ui.reports.text_forms import json_line, path_fields, printable_text

if TYPE_CHECKING:
    import numpy as np

    from engine.blip2.generation import GenerationOptions
    from engine.models.photo_captioners import PhotoCaptioner

Fields = dict[str, Any]
"""The JSON object that is printed for a photo, without its caption."""


@click.command()
@click.argument("photos", nargs=-1, type=click.Path(path_type=Path), metavar="[PHOTO]...")
@captioner_model_option(
    "Write with this model; `qseek models` lists them.",
    default="the model of the index where it writes captions, else the bundled one",
)
@click.option(
    "--results",
    is_flag=True,
    help="Read the JSON lines of search, similar or rerank from stdin, and print them with captions.",
)
@click.option("--prompt", help="Let each caption continue this text.", show_default='"a photo of"')
@click.option("--question", help="Answer this question about each photo instead.")
@click.option(
    "--beams",
    type=positive_type,
    default=5,
    show_default=True,
    metavar="N",
    help="Search with N beams; 1 takes the likeliest token each time.",
)
@click.option(
    "--sample", is_flag=True, help="Draw tokens at random (nucleus sampling, 0.9) instead of searching."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Begin the draws of --sample with this seed."
)
@click.option(
    "--max-new-tokens",
    type=positive_type,
    metavar="N",
    help="Write at most N tokens.",
    show_default="30, or 10 for an answer",
)
@index_option
@json_option
def caption(
    photos: tuple[Path, ...],
    model: str | None,
    results: bool,
    prompt: str | None,
    question: str | None,
    beams: int,
    sample: bool,
    seed: int,
    max_new_tokens: int | None,
    index: Path | None,
    as_json: bool,
) -> None:
    """Write a caption of each PHOTO, or answer a question about it.

    Without PHOTO, paths are read from stdin, one on each line.

    \b
        qseek caption beach.jpg
        qseek search "a dog" --json -k 5 | qseek caption --results
        qseek caption dog.jpg --model blip2-opt-2.7b \\
            --prompt "Question: what is the dog doing? Answer:"
    """
    _check_usage(photos, results, prompt, question)
    stdin = sys.stdin.buffer
    if results:
        rows = _read_results(stdin)
    else:
        rows = _make_rows([make_absolute(path) for path in photos] or read_paths(stdin, b"\n"))
    folder = session.resolve_index_folder(index)
    captioner = session.load_photo_captioner(model or session.get_default_captioner_name(folder))
    options = _make_options(question is not None, beams, sample, seed, max_new_tokens)

    def write_texts(pictures: np.ndarray) -> list[str]:
        if question is not None:
            return captioner.answer(pictures, [question], options)
        return captioner.caption(pictures, prompt, options)

    failures = _write_all(rows, captioner, write_texts, keep_failed=results, as_json=as_json or results)
    if failures:
        say_failures(failures)
        finish_with_failures()


def _check_usage(photos: tuple[Path, ...], results: bool, prompt: str | None, question: str | None) -> None:
    """Raise UsageError for options that contradict each other, and QueryError for an empty question."""
    if prompt is not None and question is not None:
        raise click.UsageError("--prompt begins a caption, but --question asks. Give only one of them.")
    if photos and results:
        raise click.UsageError("--results reads the photos from stdin. Leave PHOTO out.")
    if question is not None:
        check_text(question, "question", "Ask what you want to know about the photo.")


def _make_options(
    has_question: bool, beams: int, sample: bool, seed: int, max_new_tokens: int | None
) -> GenerationOptions:
    """Return the options of generation. A maximum that is below the usual minimum lowers the minimum, too."""
    from dataclasses import replace

    from engine.blip2.generation import ANSWER, CAPTION

    options = ANSWER if has_question else CAPTION
    limit = max_new_tokens or options.max_new_tokens
    options = replace(options, max_new_tokens=limit, min_new_tokens=min(options.min_new_tokens, limit))
    if sample:
        return replace(options, num_beams=1, top_p=0.9, seed=seed)
    return replace(options, num_beams=beams)


def _make_rows(paths: Iterable[Path]) -> Iterator[tuple[Path, Fields]]:
    return ((path, path_fields(path)) for path in paths)


def _read_results(file: BinaryIO) -> Iterator[tuple[Path, Fields]]:
    """Read the photo and the fields of each line. Raises DataError for a line that is not a result with a photo."""
    advice = "Give --results what `qseek search --json`, similar or rerank prints."
    number = 0
    for number, line in enumerate(file, start=1):
        try:
            fields = json.loads(line)
            name = base64.b64decode(fields["path_base64"]) if "path_base64" in fields else fields["path"]
            path = Path(os.fsdecode(name))
        except (ValueError, TypeError, KeyError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"Line {number} of stdin is not a result with a photo ({reason}). {advice}"
            ) from None
        yield make_absolute(path), fields
    if not number:
        raise DataError(f"Stdin holds no result. {advice}")


def _write_all(
    rows: Iterable[tuple[Path, Fields]],
    captioner: PhotoCaptioner,
    write_texts: Callable[[np.ndarray], list[str]],
    *,
    keep_failed: bool,
    as_json: bool,
) -> list[Failure]:
    """Write a line to stdout for each photo as soon as its text is there; return the photos that cannot be read.

    write_texts: returns the texts of a batch of pictures. keep_failed: write the line of a photo that cannot be read,
    too, with null as its caption.
    """
    from engine.search.hit_captions import write_texts_of

    waiting_rows: list[tuple[Path, Fields]] = []

    def read_photos() -> Iterator[Photo]:
        for path, fields in rows:
            waiting_rows.append((path, fields))
            yield Photo(-1, "", 0, 0, (path,))

    failures = []
    for text in write_texts_of(read_photos(), captioner.image_size, write_texts):
        path, fields = waiting_rows.pop(0)
        if isinstance(text, Failure):
            failures.append(text)
            if keep_failed:
                write(json_line({**fields, "caption": None}))
        elif as_json:
            write(json_line({**fields, "caption": text}))
        else:
            write(f"{printable_text(str(path))}\t{printable_text(text)}\n")
    return failures
