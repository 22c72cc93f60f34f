"""Let a model write a text for every item of an evaluation set: a caption for a picture, an answer to a question."""

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

WriteTexts = Callable[["np.ndarray", Sequence[Any], Sequence[int]], list[str]]
"""Takes pictures (B, H, W, 3), items, and for each item the row of its picture; returns a text for each item."""


@dataclass(frozen=True)
class EvaluationWriter:
    """A model with the options with which it writes captions or answers.

    digest: the digest of the model.
    pixels: the side of the square pictures that it reads.
    options: its options in words, such as "5 beams".
    batch_size: the number of items whose pictures are read, and whose texts are written and saved, together.
    """

    name: str
    digest: str
    pixels: int
    dtype: str
    options: str
    batch_size: int
    write: WriteTexts

    @property
    def settings(self) -> dict[str, str]:
        """Return the values by name that decide the texts, which a stopped run must find again to continue."""
        return {"model": self.digest, "dtype": self.dtype, "how": self.options}


LoadWriter = Callable[[], EvaluationWriter]


def load_caption_writer(
    model: str | None, beams: int, min_length: int, max_length: int, prompt: str | None
) -> EvaluationWriter:
    """Load a model that writes captions (`engine.models.photo_captioners`), with its options.

    model: its name or folder, None for the default one. min_length, max_length: in tokens. prompt: the text that a
    language model continues, None for the default one. Raise DataError when the model cannot write `max_length` tokens.
    """
    from engine.blip2.generation import CAPTION
    from engine.models.caption_model import CAPTION_BATCH, PROMPT, CaptionModel
    from engine.models.devices import get_dtype_name
    from engine.models.photo_captioners import HEAD_CAPTION_BATCH, HeadCaptioner, load_photo_captioner

    captioner = load_photo_captioner(model)
    if isinstance(captioner, HeadCaptioner):
        batch_size, start_text, penalty_text = HEAD_CAPTION_BATCH, "ITG head", ""
        longest = captioner.model.config.qformer.max_positions - 1  # [DEC] stands before the text
        if max_length > longest:
            raise DataError(
                f"--max-length is {max_length}; {captioner.name} writes at most {longest} tokens."
            )
    else:
        batch_size, start_text = CAPTION_BATCH, f'"{prompt or PROMPT}"'
        assert isinstance(captioner.model, CaptionModel)
        penalty = captioner.model.config.language.repetition_penalty
        penalty_text = "" if penalty == 1 else f", repetition penalty {penalty:g}"
    options = replace(CAPTION, num_beams=beams, min_new_tokens=min_length, max_new_tokens=max_length)

    def write(pictures: np.ndarray, items: Sequence[CaptionItem], rows: Sequence[int]) -> list[str]:
        texts = captioner.caption(pictures, prompt, options)
        return [texts[row] for row in rows]

    return EvaluationWriter(
        captioner.name,
        captioner.digest,
        captioner.image_size,
        get_dtype_name(captioner.model.dtype),
        f"{start_text}, {count_text(beams, 'beam')}, {min_length} to {max_length} tokens{penalty_text}",
        batch_size,
        write,
    )


def load_answer_writer(model: str, beams: int, max_new_tokens: int) -> EvaluationWriter:
    """Load a model with a language model that answers questions, with its options.

    Raise CheckpointError for a model without a language model; the message names some that have one.
    """
    from engine.blip2.generation import ANSWER
    from engine.models.caption_model import CAPTION_BATCH
    from engine.models.devices import get_dtype_name
    from engine.models.loading import load_captioner

    captioner = load_captioner(model)
    options = replace(ANSWER, num_beams=beams, max_new_tokens=max_new_tokens)

    def write(pictures: np.ndarray, items: Sequence[QuestionItem], rows: Sequence[int]) -> list[str]:
        patches = captioner.encode_patches(pictures)
        return captioner.answer(patches[list(rows)], [item.question for item in items], options)

    beams_text = f"{count_text(beams, 'beam')}, length penalty {options.length_penalty:g}"
    return EvaluationWriter(
        captioner.name,
        captioner.digest,
        captioner.image_size,
        get_dtype_name(captioner.dtype),
        f"{beams_text}, up to {count_text(max_new_tokens, 'token')}",
        CAPTION_BATCH,
        write,
    )


def write_all(
    writer: EvaluationWriter,
    items: Sequence[Item],
    predictions: Predictions,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Item]:
    """Write the texts of the items that have none yet, and add them to the predictions.

    Items about one picture are written together. on_progress: called a few times a second with the number of items
    that are done and the time that the others take. Return the items whose picture cannot be read.
    """
    todo = sorted((item for item in items if item.id not in predictions.texts), key=lambda item: item.names)
    unreadable: list[Item] = []
    pace = Pace(len(todo), on_progress)
    for start in range(0, len(todo), writer.batch_size):
        batch = todo[start : start + writer.batch_size]
        pictures = _read_pictures(batch, writer.pixels)
        readable = [item for item in batch if item.names in pictures]
        if readable:
            texts = _write_texts(readable, pictures, writer.write)
            predictions.add([item.id for item in readable], texts)
        unreadable += [item for item in batch if item.names not in pictures]
        pace.step(len(batch), len(batch) - len(readable))
    return unreadable


def _read_pictures(items: Sequence[Item], pixels: int) -> dict[tuple[str, ...], np.ndarray]:
    """Read the pictures of items, each once -> (pixels, pixels, 3) by their names, without the unreadable ones."""
    from engine.datasets.captioned_pictures import CaptionedPicture
    from engine.datasets.picture_reading import read_pictures

    pictures = {item.names: item.picture for item in items if item.picture is not None}
    squares = read_pictures(
        [CaptionedPicture(names[0], picture) for names, picture in pictures.items()], pixels
    )
    return {names: square for names, square in zip(pictures, squares, strict=True) if square is not None}


def _write_texts(
    items: Sequence[Item], pictures: dict[tuple[str, ...], np.ndarray], write: WriteTexts
) -> list[str]:
    """Write a text for each item, in order; the model reads each picture once."""
    import numpy as np

    rows = {names: row for row, names in enumerate(pictures)}
    return write(np.stack(list(pictures.values())), items, [rows[item.names] for item in items])
