"""Write captions of photos with either kind of captioner: a generative model, or a retrieval model's ITG head.

Both take pictures and give texts. A generative model (stage 2) also reads a prompt, and so it can answer questions. The
ITG head of a retrieval model was trained to write captions and nothing else (BLIP-2, section 3.2).

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
from engine.models.catalogue import DEFAULT, choose_lasting_name, find_model, has_model
from engine.models.loading import load_captioner, load_model
from engine.models.retrieval_model import RetrievalModel

BUNDLED_CAPTIONER = "mini-captioner"
"""Name of the generative model that ships beside mini. Where it is missing, mini's ITG head writes."""
HEAD_CAPTION_BATCH = 64
"""Number of photos that an ITG head captions at once."""


class PhotoCaptioner(Protocol):
    """The interface of everything that writes captions.

    name, digest: which checkpoint it is. model: the loaded model. image_size: side of the square that it reads, in
    pixels. answers: whether it answers questions.
    """

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
        self, pictures_BHWC: np.ndarray, prompt: str | None = None, options: GenerationOptions = CAPTION
    ) -> list[str]:
        """Write a caption of each uint8 (B, H, W, 3) picture of `image_size`; it does not repeat the prompt.

        prompt: what the caption goes on from, None for the model's usual prompt. Raises QueryError for a prompt that is
        empty or too long, and for any prompt where the model reads none.
        """
        ...

    def answer(
        self, pictures_BHWC: np.ndarray, questions: Sequence[str], options: GenerationOptions = ANSWER
    ) -> list[str]:
        """Answer a question about each picture, or one question about all. Raises QueryError as `caption` does."""
        ...


class LanguageCaptioner:
    """A captioner that writes with the language model of a generative checkpoint."""

    def __init__(self, model: CaptionModel):
        self.model = model
        self.answers = model.config.language.question is not None
        self.name, self.digest, self.image_size = model.name, model.digest, model.image_size

    def caption(
        self, pictures_BHWC: np.ndarray, prompt: str | None = None, options: GenerationOptions = CAPTION
    ) -> list[str]:
        if prompt is not None and not prompt.strip():
            raise QueryError(
                f'The prompt is empty. Give what the caption goes on from, such as "{PROMPT}", or leave the prompt out.'
            )
        return self.model.caption(pictures_BHWC, PROMPT if prompt is None else prompt, options)

    def answer(
        self, pictures_BHWC: np.ndarray, questions: Sequence[str], options: GenerationOptions = ANSWER
    ) -> list[str]:
        return self.model.answer(pictures_BHWC, questions, options)


class HeadCaptioner:
    """A captioner that writes with the ITG head of a retrieval checkpoint.

    Raises CheckpointError for a checkpoint without such a head, as transformers' retrieval folders are.
    """

    answers = False

    def __init__(self, model: RetrievalModel):
        if not model.config.has_captions:
            raise _cannot_write_error(model)
        self.model = model
        self.name, self.digest, self.image_size = model.name, model.digest, model.image_size

    def caption(
        self, pictures_BHWC: np.ndarray, prompt: str | None = None, options: GenerationOptions = CAPTION
    ) -> list[str]:
        if prompt is not None:
            raise self._no_prompt_error()
        return write_captions(self.model, pictures_BHWC, options)

    def answer(
        self, pictures_BHWC: np.ndarray, questions: Sequence[str], options: GenerationOptions = ANSWER
    ) -> list[str]:
        raise self._no_prompt_error()

    def _no_prompt_error(self) -> QueryError:
        return QueryError(
            f"{self.name} only writes captions: it reads no prompt and answers no questions. Models with a language "
            f"model do both: {', '.join(list_answering_models())}."
        )


def write_captions(
    model: RetrievalModel, pictures_BHWC: np.ndarray, options: GenerationOptions = CAPTION
) -> list[str]:
    """Write a caption of each uint8 (B, H, W, 3) picture with a retrieval model's ITG head.

    The caption comes from a beam search, or is drawn where `options.top_p` is given; it never has more tokens than the
    model has positions. Raises ValueError for a length or repetition penalty, which an ITG head does not support.
    """
    if (options.length_penalty, options.repetition_penalty or 1.0) != (1.0, 1.0):
        raise ValueError(
            f"length_penalty is {options.length_penalty} and repetition_penalty is {options.repetition_penalty}; "
            "an ITG head supports none: both must be 1."
        )
    longest = min(
        options.max_new_tokens + 1, model.config.qformer.max_positions
    )  # [DEC] before the text counts, too.
    shortest = min(options.min_new_tokens + 1, longest)
    generator = torch.Generator().manual_seed(options.seed)
    texts: list[str] = []
    for start in range(0, len(pictures_BHWC), HEAD_CAPTION_BATCH):
        keys = model.compute_photo_keys(
            model.encode_patches(pictures_BHWC[start : start + HEAD_CAPTION_BATCH])
        )
        if options.top_p is None:
            texts += model.write_best_captions(
                keys, num_beams=options.num_beams, min_length=shortest, max_length=longest
            )
        else:
            drawn = model.draw_captions(
                keys, 1, generator, top_p=options.top_p, temperature=options.temperature, min_length=shortest,
                max_length=longest,
            )  # fmt: skip
            texts += [texts_of_photo[0] for texts_of_photo in drawn]
    return texts


def load_photo_captioner(
    name: str | None = None,
    searching: RetrievalModel | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> PhotoCaptioner:
    """Load the captioner of a name, folder or Hugging Face id; without a name, that of `choose_default_captioner`.

    searching: a loaded retrieval model, which is used and not loaded again when the name is its own. device, dtype: see
    `loading.load_model`. Raises CheckpointError as `load_model` does, and for a model that cannot write.
    """
    name = name or choose_default_captioner(None if searching is None else searching.name)
    if searching is not None and name == searching.name:
        return HeadCaptioner(searching)
    if has_language(find_model(name)):
        return LanguageCaptioner(load_captioner(name, device=device, dtype=dtype))
    return HeadCaptioner(load_model(name, device=device, dtype=dtype))


def choose_default_captioner(searching: str | None = None) -> str:
    """Return the name of the captioner to use when a person names none.

    It is the searching model where that has an ITG head and is not mini, else the bundled captioner, else mini.
    searching: the name of the model that searches, None where there is none.
    """
    if searching not in (None, DEFAULT) and _has_head(searching):
        return searching
    return BUNDLED_CAPTIONER if has_model(BUNDLED_CAPTIONER) else DEFAULT


def is_called(name: str, lasting_name: str) -> bool:
    """Return whether a name, folder or Hugging Face id means the model of a lasting name (`choose_lasting_name`).

    Raises CheckpointError when there is no such model.
    """
    return name == lasting_name or choose_lasting_name(name, find_model(name)) == lasting_name


def is_able_to_answer(name: str) -> bool:
    """Return whether the model of a name answers questions, without loading it.

    Raises CheckpointError when there is no such model.
    """
    return answers_questions(find_model(name))


def _has_head(name: str) -> bool:
    try:
        return read_folder(find_model(name)).config.has_captions
    except CheckpointError:
        return False


def _cannot_write_error(model: RetrievalModel) -> CheckpointError:
    return CheckpointError(
        f"{model.folder} cannot write captions: it has neither a language model nor a captioning (ITG) head, which "
        f"transformers' retrieval folders leave out. These can: {', '.join([DEFAULT, *list_answering_models()])}, and "
        "every model of `qseek train stage2`."
    )


def list_answering_models() -> list[str]:
    """Return the names of published models that answer questions."""
    return list(PUBLISHED)
