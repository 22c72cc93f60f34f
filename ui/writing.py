"""Models that write about the pictures of an evaluation set, and the run over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.errors import DataError
from ui.opening import load_model
from ui.progress import SECONDS_BETWEEN_LINES, duration_text
from ui.render import count_text
from ui.terminal import say

if TYPE_CHECKING:
    import numpy as np

    from engine.blip2.caption_model import CaptionModel
    from engine.predictions import Predictions
    from training.benchmarks import CaptionTask, QuestionTask, Task

Write = Callable[["np.ndarray", Sequence[Any], Sequence[int]], list[str]]
"""Pictures (B, H, W, 3), and tasks with the row of each one's picture -> a text each."""


@dataclass(frozen=True)
class Writer:
    """A model and how it writes. at_once: tasks that are read, written and kept together."""

    name: str
    digest: str
    pixels: int
    dtype: str
    how: str
    at_once: int
    write: Write


def caption_writer(
    model: str | None, beams: int, min_length: int, max_length: int, prompt: str | None
) -> Writer:
    """A model with a language model, or with an ITG head where it has none; the bundled one when none is named.

    Raises CheckpointError for one that has neither, naming some that write.
    """
    from engine.blip2.caption_sources import has_language, no_language
    from engine.blip2.checkpoint import DEFAULT, find_model

    folder = find_model(model or DEFAULT)
    if has_language(folder):
        return _language_captions(model or DEFAULT, beams, min_length, max_length, prompt)
    net = load_model(model)
    if not net.config.has_captions:
        raise no_language(folder)
    if prompt is not None:
        raise DataError(f"{net.name} writes with its ITG head, which reads no prompt: leave --prompt out.")
    longest = net.config.qformer.max_positions
    if max_length > longest or max_length < 2:
        raise DataError(f"--max-length is {max_length}; {net.name} writes 2 to {longest} tokens.")

    def write(pictures: np.ndarray, tasks: Sequence[CaptionTask], rows: Sequence[int]) -> list[str]:
        keys = net.photo_keys(net.encode_patches(pictures))
        texts = net.best_captions(keys, num_beams=beams, min_length=min_length, max_length=max_length)
        return [texts[row] for row in rows]

    how = f"ITG head, {count_text(beams, 'beam')}, {min_length} to {max_length} tokens"
    dtype = str(net.dtype).removeprefix("torch.")
    return Writer(net.name, net.digest, net.image_size, dtype, how, 64, write)


def _language_captions(
    model: str, beams: int, min_length: int, max_length: int, prompt: str | None
) -> Writer:
    from engine.blip2.caption_checkpoint import load_captioner
    from engine.blip2.caption_model import PROMPT
    from engine.blip2.captioner import CAPTION

    captioner = load_captioner(model)
    words = PROMPT if prompt is None else prompt
    how = replace(CAPTION, num_beams=beams, min_new_tokens=min_length, max_new_tokens=max_length)

    def write(pictures: np.ndarray, tasks: Sequence[CaptionTask], rows: Sequence[int]) -> list[str]:
        texts = captioner.caption(pictures, words, how)
        return [texts[row] for row in rows]

    return _writer(
        captioner, f'"{words}", {count_text(beams, "beam")}, {min_length} to {max_length} tokens', write
    )


def answer_writer(model: str, beams: int, max_new_tokens: int) -> Writer:
    """A model with a language model. Raises CheckpointError for another, naming some that have one."""
    from engine.blip2.caption_checkpoint import load_captioner
    from engine.blip2.captioner import ANSWER

    captioner = load_captioner(model)
    how = replace(ANSWER, num_beams=beams, max_new_tokens=max_new_tokens)

    def write(pictures: np.ndarray, tasks: Sequence[QuestionTask], rows: Sequence[int]) -> list[str]:
        patches = captioner.encode_patches(pictures)
        return captioner.answer(patches[list(rows)], [task.question for task in tasks], how)

    beams_text = f"{count_text(beams, 'beam')}, length penalty {how.length_penalty:g}"
    return _writer(captioner, f"{beams_text}, up to {count_text(max_new_tokens, 'token')}", write)


def _writer(model: CaptionModel, how: str, write: Write) -> Writer:
    from engine.blip2.caption_model import TEXTS_AT_ONCE

    dtype = str(model.dtype).removeprefix("torch.")
    return Writer(model.name, model.digest, model.image_size, dtype, how, TEXTS_AT_ONCE, write)


def write_all(writer: Writer, tasks: Sequence[Task], predictions: Predictions, what: str) -> list[Task]:
    """Texts of the tasks that have none yet, those of one picture together; returns those whose picture cannot be read.

    what: one task, for the lines on stderr that say how far it is.
    """
    import numpy as np

    from training.data import CaptionedPicture, read_pictures

    todo = sorted((task for task in tasks if task.id not in predictions.texts), key=lambda task: task.names)
    unreadable: list[Task] = []
    started = said = time.monotonic()
    for start in range(0, len(todo), writer.at_once):
        some = todo[start : start + writer.at_once]
        sources = {task.names: task.picture for task in some}
        read = read_pictures(
            [
                CaptionedPicture(names[0], picture)
                for names, picture in sources.items()
                if picture is not None
            ],
            writer.pixels,
        )
        pictures = {
            names: picture for names, picture in zip(sources, read, strict=True) if picture is not None
        }
        rows = {names: row for row, names in enumerate(pictures)}
        unreadable += [task for task in some if task.names not in rows]
        some = [task for task in some if task.names in rows]
        if some:
            texts = writer.write(np.stack(list(pictures.values())), some, [rows[task.names] for task in some])
            predictions.add([task.id for task in some], texts)
        done, now = min(start + writer.at_once, len(todo)), time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES and done < len(todo):
            said = now
            left = duration_text((now - started) / done * (len(todo) - done))
            say(f"{done:,} of {count_text(len(todo), what)}, {left} left")
    return unreadable
