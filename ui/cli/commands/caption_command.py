"""caption: what photos show, and answers to questions about them."""

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
from ui.cli.options import index_option, json_option
from ui.cli.terminal import finish_with_failures, say_failures, write
from ui.cli.typed_input import check_text, make_absolute, read_paths
from ui.reports import text_forms
from ui.session import CAPTIONER_VARIABLE, get_default_captioner_name

if TYPE_CHECKING:
    import numpy as np

    from engine.blip2.generation import GenerationOptions
    from engine.models.photo_captioners import PhotoCaptioner

Fields = dict[str, Any]


@click.command()
@click.argument("photos", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--model", envvar=CAPTIONER_VARIABLE, show_envvar=True, metavar="NAME|FOLDER",
    help="A model that writes, see `qseek models`.  [default: the index's where it writes, else the bundled one]",
)  # fmt: skip
@click.option(
    "--results", is_flag=True,
    help="Take the JSON lines of search, similar or rerank from stdin and give them back with captions.",
)  # fmt: skip
@click.option("--prompt", help='What the text goes on from.  [default: "a photo of"]')
@click.option("--question", help="Answer this about each photo instead.")
@click.option(
    "--beams", type=click.IntRange(min=1), default=5, show_default=True, help="1 takes the likeliest token."
)
@click.option("--sample", is_flag=True, help="Draw tokens (nucleus sampling, 0.9) instead of searching.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), help="The longest text.  [default: 30, answers 10]"
)
@index_option
@json_option
def caption(
    photos: tuple[Path, ...], model: str | None, results: bool, prompt: str | None, question: str | None,
    beams: int, sample: bool, seed: int, max_new_tokens: int | None, index: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Say what each PHOTO shows, or answer a question about it. Without PHOTO, paths are read from stdin.

    \b
        qseek caption beach.jpg
        qseek search "a dog" --json -k 5 | qseek caption --results
        qseek caption dog.jpg --model blip2-opt-2.7b --prompt "Question: what is the dog doing? Answer:"
    """
    if prompt is not None and question is not None:
        raise click.UsageError("--prompt is what a text goes on from, --question asks: give one of them.")
    if photos and results:
        raise click.UsageError("--results takes its photos from stdin: leave PHOTO away.")
    if question is not None:
        check_text(question)
    stdin = sys.stdin.buffer
    if results:
        rows = _result_lines(stdin)
    else:
        rows = _rows_of([make_absolute(path) for path in photos] or read_paths(stdin, b"\n"))
    writer = session.load_photo_captioner(
        model or get_default_captioner_name(session.resolve_index_folder(index))
    )
    how = _how(question is not None, beams, sample, seed, max_new_tokens)

    def write_texts(pictures: np.ndarray) -> list[str]:
        if question is not None:
            return writer.answer(pictures, [question], how)
        return writer.caption(pictures, prompt, how)

    failures = _write_all(rows, writer, write_texts, results, as_json or results)
    if failures:
        say_failures(failures)
        finish_with_failures()


def _how(asks: bool, beams: int, sample: bool, seed: int, max_new_tokens: int | None) -> GenerationOptions:
    from dataclasses import replace

    from engine.blip2.generation import ANSWER, CAPTION

    preset = ANSWER if asks else CAPTION
    limit = max_new_tokens or preset.max_new_tokens
    preset = replace(preset, max_new_tokens=limit, min_new_tokens=min(preset.min_new_tokens, limit))
    if sample:
        return replace(preset, num_beams=1, top_p=0.9, seed=seed)
    return replace(preset, num_beams=beams)


def _rows_of(paths: Iterable[Path]) -> Iterator[tuple[Path, Fields]]:
    return ((path, text_forms.path_fields(path)) for path in paths)


def _result_lines(file: BinaryIO) -> Iterator[tuple[Path, Fields]]:
    """The photo of each line, and the line's fields. Raises DataError for a line that is no result with a photo."""
    number = 0
    for number, line in enumerate(file, start=1):
        try:
            fields = json.loads(line)
            name = base64.b64decode(fields["path_base64"]) if "path_base64" in fields else fields["path"]
            path = Path(os.fsdecode(name))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"Line {number} of stdin is no result with a photo ({type(error).__name__}: {error}); --results takes "
                "what `qseek search --json`, similar or rerank print."
            ) from None
        yield make_absolute(path), fields
    if not number:
        raise DataError("stdin holds no result; --results takes what `qseek search --json` prints.")


def _write_all(
    rows: Iterable[tuple[Path, Fields]],
    writer: PhotoCaptioner,
    write_texts: Callable[[np.ndarray], list[str]],
    keeps_failed: bool,
    as_json: bool,
) -> list[Failure]:
    """Lines as they come, a batch behind what is read; the photos that cannot be read.

    keeps_failed: such a photo's line is written, too, with a caption of null.
    """
    from engine.search.hit_captions import write_texts_of

    ahead: list[tuple[Path, Fields]] = []

    def photos() -> Iterator[Photo]:
        for path, fields in rows:
            ahead.append((path, fields))
            yield Photo(-1, "", 0, 0, (path,))

    failures = []
    for text in write_texts_of(photos(), writer.image_size, write_texts):
        path, fields = ahead.pop(0)
        if isinstance(text, Failure):
            failures.append(text)
            if keeps_failed:
                write(text_forms.json_line({**fields, "caption": None}))
        elif as_json:
            write(text_forms.json_line({**fields, "caption": text}))
        else:
            write(f"{text_forms.printable_text(str(path))}\t{text_forms.printable_text(text)}\n")
    return failures
