"""What writes captions: a generative checkpoint (stage 2), or a retrieval checkpoint's own text decoder (the ITG head).

Both take pictures and give texts. A generative one also reads a prompt, and so answers questions; the ITG head was
trained to caption alone (BLIP-2, section 3.2).

Shapes: B photos, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from engine.blip2.generation import ANSWER, CAPTION, GenerationOptions
from engine.checkpoints.captioner_reading import answers_questions, has_language
from engine.checkpoints.published import PUBLISHED
from engine.checkpoints.retrieval_reading import read_folder
from engine.errors import CheckpointError, QueryError
from engine.models.caption_model import PROMPT, CaptionModel
from engine.models.catalogue import DEFAULT, find_model, has_model, lasting_name
from engine.models.loading import load_captioner, load_model
from engine.models.retrieval_model import RetrievalModel

BUNDLED_CAPTIONER = "mini-captioner"
"""The generative model that ships beside mini; where it is missing, mini's ITG head writes."""
WRITTEN_AT_ONCE = 64


class CaptionWriter(Protocol):
    """name, digest: which checkpoint, model: itself. image_size: pixels of the square it reads. answers: whether it
    answers questions."""

    @property
    def model(self) -> CaptionModel | RetrievalModel: ...
    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def image_size(self) -> int: ...
    @property
    def answers(self) -> bool: ...

    def caption(
        self, pictures_BHWC: np.ndarray, prompt: str | None = None, how: GenerationOptions = CAPTION
    ) -> list[str]:
        """A caption of each uint8 (B, H, W, 3) picture of `image_size`, without the prompt it goes on from.

        prompt: None = the model's usual one. Raises QueryError: an empty prompt, a longer one than the model reads, or
        any where it reads none.
        """
        ...

    def answer(
        self, pictures_BHWC: np.ndarray, questions: Sequence[str], how: GenerationOptions = ANSWER
    ) -> list[str]:
        """Short answers: a question for each picture, or one for all. Raises QueryError as `caption` does."""
        ...


class LanguageWriter:
    """A generative checkpoint writes."""

    def __init__(self, model: CaptionModel):
        self.model = model
        self.answers = model.config.language.question is not None
        self.name, self.digest, self.image_size = model.name, model.digest, model.image_size

    def caption(
        self, pictures_BHWC: np.ndarray, prompt: str | None = None, how: GenerationOptions = CAPTION
    ) -> list[str]:
        if prompt is not None and not prompt.strip():
            raise QueryError(
                f'The prompt is empty; say what the text goes on from, like "{PROMPT}", or leave it away.'
            )
        return self.model.caption(pictures_BHWC, PROMPT if prompt is None else prompt, how)

    def answer(
        self, pictures_BHWC: np.ndarray, questions: Sequence[str], how: GenerationOptions = ANSWER
    ) -> list[str]:
        return self.model.answer(pictures_BHWC, questions, how)


class HeadWriter:
    """A retrieval checkpoint's ITG head writes. Raises CheckpointError for one without (transformers' folders)."""

    answers = False

    def __init__(self, model: RetrievalModel):
        if not model.config.has_captions:
            raise _cannot_write(model)
        self.model = model
        self.name, self.digest, self.image_size = model.name, model.digest, model.image_size

    def caption(
        self, pictures_BHWC: np.ndarray, prompt: str | None = None, how: GenerationOptions = CAPTION
    ) -> list[str]:
        if prompt is not None:
            raise self._reads_no_prompt()
        return write_captions(self.model, pictures_BHWC, how)

    def answer(
        self, pictures_BHWC: np.ndarray, questions: Sequence[str], how: GenerationOptions = ANSWER
    ) -> list[str]:
        raise self._reads_no_prompt()

    def _reads_no_prompt(self) -> QueryError:
        return QueryError(
            f"{self.name} captions and reads no prompt: it cannot answer questions. Those with a language model can: "
            f"{', '.join(answering())}."
        )


def write_captions(
    model: RetrievalModel, pictures_BHWC: np.ndarray, how: GenerationOptions = CAPTION
) -> list[str]:
    """Captions by a retrieval model's ITG head: beams, or one draw each where `how.top_p` is given; never more tokens
    than it has places for. Raises ValueError for penalties, which it does not know."""
    if (how.length_penalty, how.repetition_penalty or 1.0) != (1.0, 1.0):
        raise ValueError(
            f"length_penalty is {how.length_penalty}, repetition_penalty {how.repetition_penalty}; an ITG head takes 1"
        )
    longest = min(how.max_new_tokens + 1, model.config.qformer.max_positions)  # [DEC] stands before the text
    shortest = min(how.min_new_tokens + 1, longest)
    chance = torch.Generator().manual_seed(how.seed)
    texts: list[str] = []
    for start in range(0, len(pictures_BHWC), WRITTEN_AT_ONCE):
        keys = model.photo_keys(model.encode_patches(pictures_BHWC[start : start + WRITTEN_AT_ONCE]))
        if how.top_p is None:
            texts += model.best_captions(
                keys, num_beams=how.num_beams, min_length=shortest, max_length=longest
            )
        else:
            drawn = model.draw_captions(
                keys, 1, chance, top_p=how.top_p, temperature=how.temperature, min_length=shortest,
                max_length=longest,
            )  # fmt: skip
            texts += [texts_of_photo[0] for texts_of_photo in drawn]
    return texts


def load_writer(
    name: str | None = None,
    searching: RetrievalModel | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> CaptionWriter:
    """What writes captions, by name, folder or Hugging Face id, without one `default_writer`; device, dtype: see
    `loading.load_model`. searching: a loaded model, which is not loaded again.

    Raises CheckpointError as it does, and for a model that has neither a language model nor an ITG head.
    """
    name = name or default_writer(None if searching is None else searching.name)
    if searching is not None and name == searching.name:
        return HeadWriter(searching)
    if has_language(find_model(name)):
        return LanguageWriter(load_captioner(name, device=device, dtype=dtype))
    return HeadWriter(load_model(name, device=device, dtype=dtype))


def default_writer(searching: str | None = None) -> str:
    """The name of what writes when nobody says: the searching model where it has an ITG head and is not mini; else the
    bundled captioner; where that is missing, mini."""
    if searching not in (None, DEFAULT) and _has_head(searching):
        return searching
    return BUNDLED_CAPTIONER if has_model(BUNDLED_CAPTIONER) else DEFAULT


def is_called(name: str, writer: str) -> bool:
    """Whether a name, folder or id means the writer whose lasting name this is. Raises CheckpointError: no such one."""
    return name == writer or lasting_name(name, find_model(name)) == writer


def is_able_to_answer(name: str) -> bool:
    """Return whether a model, known by its name, answers questions; nothing is loaded. Raises CheckpointError."""
    return answers_questions(find_model(name))


def _has_head(name: str) -> bool:
    try:
        return read_folder(find_model(name)).config.has_captions
    except CheckpointError:
        return False


def _cannot_write(model: RetrievalModel) -> CheckpointError:
    return CheckpointError(
        f"{model.folder} cannot write: it has no language model, and no captioning (ITG) head either, which "
        f"transformers' retrieval folders leave out. These write: {', '.join([DEFAULT, *answering()])}, and what "
        "`qseek train stage2` makes."
    )


def answering() -> list[str]:
    """Names of models that answer questions."""
    return list(PUBLISHED)
