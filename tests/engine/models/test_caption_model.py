"""A loaded caption model reads each photo and prompt once, writes texts in the right order, and refuses bad prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from prompts_and_pictures import PROMPTS, SHORT, encode_text, random_pictures

from engine.blip2.generation import GenerationOptions
from engine.errors import QueryError
from engine.models.caption_model import CaptionModel


def test_pictures_are_read_once_whatever_the_beams(
    model: CaptionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {"vision": 0, "qformer": 0}
    encode, keys = model.net.encode_patches, model.net.qformer.compute_photo_keys

    def count_pictures(pixels: torch.Tensor) -> torch.Tensor:
        seen["vision"] += len(pixels)
        return encode(pixels)

    def count_photos(patches: torch.Tensor) -> Any:
        seen["qformer"] += len(patches)
        return keys(patches)

    monkeypatch.setattr(model.net, "encode_patches", count_pictures)
    monkeypatch.setattr(model.net.qformer, "compute_photo_keys", count_photos)
    model.generate(random_pictures(3), ["a"], GenerationOptions(max_new_tokens=4, num_beams=4))
    assert seen == {"vision": 3, "qformer": 3}
    model.generate(random_pictures(1), PROMPTS, GenerationOptions(max_new_tokens=4, num_beams=2))
    reads = (
        len(PROMPTS) if model.prompt_tokenizer else 1
    )  # a Q-Former that reads the prompt reads it with the photo
    assert seen == {"vision": 4, "qformer": 3 + reads}


def test_patches_or_pictures(model: CaptionModel) -> None:
    photos = random_pictures(2)
    assert model.generate(model.encode_patches(photos), ["a"], SHORT) == model.generate(photos, ["a"], SHORT)


def test_prompts_that_cannot_be_read(model: CaptionModel) -> None:
    room = model.tokenizer.room - (0 if model.config.language.encoder_decoder else SHORT.max_new_tokens)
    with pytest.raises(QueryError, match=rf"reads at most {room:,} beside the photo's and 8 new ones"):
        model.generate(random_pictures(1), ["x" * (room + 1)], SHORT)
    with pytest.raises(ValueError, match="2 photos and 3 prompts do not pair"):
        model.generate(random_pictures(2), PROMPTS, SHORT)
    with pytest.raises(QueryError, match="Question 2 is empty"):
        model.answer(random_pictures(2), ["what?", " "])
    if model.prompt_tokenizer is None:
        assert model.generate(random_pictures(1), [""], SHORT)  # a text without a beginning
        return
    with pytest.raises(QueryError, match=r"The prompt is empty, and .* cannot write without one"):
        model.generate(random_pictures(1), [" "], SHORT)
    with pytest.raises(QueryError, match="5 tokens longer than the 16 that the Q-Former reads"):
        model.generate(random_pictures(1), ["a " * 19], SHORT)


def test_captions_and_answers(model: CaptionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    generate = model.generate

    def watch(photos: np.ndarray, prompts: list[str], options: GenerationOptions) -> list[str]:
        asked.extend(prompts)
        return generate(photos, [prompts[0][:8]] * len(prompts), SHORT)

    monkeypatch.setattr(model, "generate", watch)
    assert len(model.caption(random_pictures(2))) == 2
    model.answer(random_pictures(2), [" what? ", "who?"])
    word = "Answer:" if model.config.language.end_id == encode_text("opt", "\n")[0] else "Short answer:"
    assert asked == ["a photo of", f"Question: what? {word}", f"Question: who? {word}"]
