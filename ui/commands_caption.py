"""caption: what photos show, and answers to questions about them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.errors import PhotoError
from engine.types import Failure
from ui import render
from ui.options import json_option
from ui.reading import absolute, checked_text, read_paths
from ui.terminal import finish_with_failures, say_failures, write

if TYPE_CHECKING:
    import numpy as np

    from engine.blip2.captioner import Generation

PHOTOS_AT_ONCE = 16


@click.command()
@click.argument("photos", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, envvar="QSEEK_CAPTION_MODEL", show_envvar=True, metavar="NAME|FOLDER",
    help="A model that writes: blip2-opt-2.7b, a folder, a Hugging Face id.",
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
@json_option
def caption(
    photos: tuple[Path, ...], model: str, prompt: str | None, question: str | None, beams: int, sample: bool,
    seed: int, max_new_tokens: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Say what each PHOTO shows, or answer a question about it. Without PHOTO, paths are read from stdin.

    \b
        qseek caption beach.jpg --model blip2-opt-2.7b
        qseek search "a dog" --paths -k 5 | qseek caption --model FOLDER --question "What is the dog doing?"
    """
    if prompt is not None and question is not None:
        raise click.UsageError("--prompt is what a text goes on from, --question asks: give one of them.")
    if question is not None:
        checked_text(question)
    paths = [absolute(path) for path in photos] or read_paths(sys.stdin.buffer, b"\n")
    from engine.blip2.caption_checkpoint import load_captioner
    from engine.blip2.caption_model import PROMPT

    captioner = load_captioner(model)
    how = _how(question is not None, beams, sample, seed, max_new_tokens)
    failures: list[Failure] = []
    for some, pictures in _read(paths, captioner.image_size, failures):
        if question is not None:
            texts = captioner.answer(pictures, [question], how)
        else:
            texts = captioner.caption(pictures, PROMPT if prompt is None else prompt, how)
        for path, text in zip(some, texts, strict=True):
            write(_line(path, text, as_json))
    if failures:
        say_failures(failures)
        finish_with_failures()


def _how(asks: bool, beams: int, sample: bool, seed: int, max_new_tokens: int | None) -> Generation:
    from dataclasses import replace

    from engine.blip2.captioner import ANSWER, CAPTION

    preset = ANSWER if asks else CAPTION
    limit = max_new_tokens or preset.max_new_tokens
    preset = replace(preset, max_new_tokens=limit, min_new_tokens=min(preset.min_new_tokens, limit))
    if sample:
        return replace(preset, num_beams=1, top_p=0.9, seed=seed)
    return replace(preset, num_beams=beams)


def _read(
    paths: Sequence[Path], size: int, failures: list[Failure]
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Batches of photos that can be read; the others go to `failures`."""
    import numpy as np

    from engine.blip2.preprocess import squash
    from engine.pictures import open_picture

    for start in range(0, len(paths), PHOTOS_AT_ONCE):
        good, pictures = [], []
        for path in paths[start : start + PHOTOS_AT_ONCE]:
            try:
                pictures.append(squash(open_picture(path, least_side=2 * size), size))
                good.append(path)
            except PhotoError as error:
                failures.append(Failure(path, str(error)))
        if good:
            yield good, np.stack(pictures)


def _line(path: Path, text: str, as_json: bool) -> str:
    if as_json:
        return render.json_line({**render.path_fields(path), "caption": text})
    return f"{render.printable(str(path))}\t{render.printable(text)}\n"
