"""Models that write about the pictures of an evaluation set, and the run over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.errors import DataError
from engine.progress import Pace, Progress
from engine.wording import count_text

if TYPE_CHECKING:
    import numpy as np

    from engine.datasets.captioned_pictures import CaptionItem, Item, QuestionItem
    from engine.evaluation.results_files import Predictions

Write = Callable[["np.ndarray", Sequence[Any], Sequence[int]], list[str]]
"""Pictures (B, H, W, 3), and tasks with the row of each one's picture -> a text each."""


@dataclass(frozen=True)
class EvaluationWriter:
    """A model and how it writes. at_once: tasks that are read, written and kept together."""

    name: str
    digest: str
    pixels: int
    dtype: str
    options: str
    batch_size: int
    write: Write

    @property
    def settings(self) -> dict[str, str]:
        return {"model": self.digest, "dtype": self.dtype, "how": self.options}


LoadWriter = Callable[[], EvaluationWriter]


def load_caption_writer(
    model: str | None, beams: int, min_length: int, max_length: int, prompt: str | None
) -> EvaluationWriter:
    """What captions (`engine.models.photo_captioners`), by name or the default, and how it writes."""
    from engine.blip2.generation import CAPTION
    from engine.models.caption_model import CAPTION_BATCH, PROMPT, CaptionModel
    from engine.models.devices import get_dtype_name
    from engine.models.photo_captioners import HEAD_CAPTION_BATCH, HeadCaptioner, load_photo_captioner

    writer = load_photo_captioner(model)
    if isinstance(writer, HeadCaptioner):
        at_once, begins, penalty = HEAD_CAPTION_BATCH, "ITG head", ""
        longest = writer.model.config.qformer.max_positions - 1  # [DEC] stands before the text
        if max_length > longest:
            raise DataError(f"--max-length is {max_length}; {writer.name} writes at most {longest} tokens.")
    else:
        at_once, begins = CAPTION_BATCH, f'"{prompt or PROMPT}"'
        assert isinstance(writer.model, CaptionModel)
        own = writer.model.config.language.repetition_penalty
        penalty = "" if own == 1 else f", repetition penalty {own:g}"
    how = replace(CAPTION, num_beams=beams, min_new_tokens=min_length, max_new_tokens=max_length)

    def write(pictures: np.ndarray, tasks: Sequence[CaptionItem], rows: Sequence[int]) -> list[str]:
        texts = writer.caption(pictures, prompt, how)
        return [texts[row] for row in rows]

    said = f"{begins}, {count_text(beams, 'beam')}, {min_length} to {max_length} tokens{penalty}"
    return EvaluationWriter(
        writer.name,
        writer.digest,
        writer.image_size,
        get_dtype_name(writer.model.dtype),
        said,
        at_once,
        write,
    )


def load_answer_writer(model: str, beams: int, max_new_tokens: int) -> EvaluationWriter:
    """A model with a language model. Raises CheckpointError for another, naming some that have one."""
    from engine.blip2.generation import ANSWER
    from engine.models.caption_model import CAPTION_BATCH
    from engine.models.devices import get_dtype_name
    from engine.models.loading import load_captioner

    captioner = load_captioner(model)
    how = replace(ANSWER, num_beams=beams, max_new_tokens=max_new_tokens)

    def write(pictures: np.ndarray, tasks: Sequence[QuestionItem], rows: Sequence[int]) -> list[str]:
        patches = captioner.encode_patches(pictures)
        return captioner.answer(patches[list(rows)], [task.question for task in tasks], how)

    beams_text = f"{count_text(beams, 'beam')}, length penalty {how.length_penalty:g}"
    said = f"{beams_text}, up to {count_text(max_new_tokens, 'token')}"
    return EvaluationWriter(
        captioner.name,
        captioner.digest,
        captioner.image_size,
        get_dtype_name(captioner.dtype),
        said,
        CAPTION_BATCH,
        write,
    )


def write_all(
    writer: EvaluationWriter, tasks: Sequence[Item], predictions: Predictions,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Item]:  # fmt: skip
    """Write the texts of the tasks that have none yet, those of one picture together; return the tasks whose picture
    cannot be read.

    on_progress: called a few times a second with how many tasks are done and how long the others take.
    """
    todo = sorted((task for task in tasks if task.id not in predictions.texts), key=lambda task: task.names)
    unreadable: list[Item] = []
    pace = Pace(len(todo), on_progress)
    for start in range(0, len(todo), writer.batch_size):
        batch = todo[start : start + writer.batch_size]
        pictures = _pictures_of(batch, writer.pixels)
        readable = [task for task in batch if task.names in pictures]
        if readable:
            texts = _texts_of(readable, pictures, writer.write)
            predictions.add([task.id for task in readable], texts)
        unreadable += [task for task in batch if task.names not in pictures]
        pace.step(len(batch), len(batch) - len(readable))
    return unreadable


def _pictures_of(tasks: Sequence[Item], pixels: int) -> dict[tuple[str, ...], np.ndarray]:
    """Read the pictures of some tasks, each once -> by their names, those that can be read, (pixels, pixels, 3)."""
    from engine.datasets.captioned_pictures import CaptionedPicture
    from engine.datasets.picture_reading import read_pictures

    sources = {task.names: task.picture for task in tasks if task.picture is not None}
    squares = read_pictures([CaptionedPicture(names[0], source) for names, source in sources.items()], pixels)
    return {names: square for names, square in zip(sources, squares, strict=True) if square is not None}


def _texts_of(tasks: Sequence[Item], pictures: dict[tuple[str, ...], np.ndarray], write: Write) -> list[str]:
    """Write a text for each task, in order; the model reads each picture once."""
    import numpy as np

    rows = {names: row for row, names in enumerate(pictures)}
    return write(np.stack(list(pictures.values())), tasks, [rows[task.names] for task in tasks])
