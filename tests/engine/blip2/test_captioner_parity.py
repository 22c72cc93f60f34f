"""Stage 2 gives the numbers of transformers' BLIP-2 (OPT, Flan-T5) and InstructBLIP (LLaMA).

Their weights are random, saved by transformers and read by us.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from random_blip2 import ATOL, SIZE, Q, random_captioner, save_captioner_folder
from torch import Tensor

from engine.blip2.generation import GenerationOptions
from engine.blip2.language_tokens import IGNORED
from engine.models.caption_model import CaptionModel
from engine.models.loading import load_captioner

PROMPTS = ("a photo of", "", "Question: what is it? Answer:")
INSTRUCTIONS = ("a red dog", "the", "on the house a cat runs")
Pair = tuple[Any, CaptionModel]


@pytest.fixture(scope="module", params=["opt", "t5", "llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return (their model, our model) with equal weights: ours is read from the folder that theirs saved."""
    theirs, folder = random_captioner(request.param), tmp_path_factory.mktemp(request.param)
    save_captioner_folder(theirs, request.param, folder)
    return theirs, load_captioner(str(folder), device="cpu", dtype="float32")


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def asked(ours: CaptionModel, batch: int) -> tuple[list[str], dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Return the prompts, the inputs that only their model takes, and our soft prompts, ids and mask."""
    prompts = list(INSTRUCTIONS[:batch] if ours.prompt_tokenizer else PROMPTS[:batch])
    patches = ours.encode_patches(pictures(batch))
    ids, mask = ours.tokenizer.encode_prompts(prompts, 12)
    assert batch == 1 or not mask.all()
    if ours.prompt_tokenizer is None:
        return prompts, {}, ours.net.read_photos(patches), ids, mask
    words, words_mask, _ = ours.prompt_tokenizer(prompts)
    extra = {"qformer_input_ids": words, "qformer_attention_mask": words_mask.long()}
    return prompts, extra, ours.net.read_with_prompts(patches, words, words_mask), ids, mask


def their_pixels(ours: CaptionModel, batch: int) -> Tensor:
    vision = ours.config.vision
    pixels = torch.from_numpy(pictures(batch)).permute(0, 3, 1, 2) / 255
    return (pixels - torch.tensor(vision.mean).view(3, 1, 1)) / torch.tensor(vision.std).view(3, 1, 1)


def with_images(theirs: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    images = torch.full((len(ids), Q), theirs.config.image_token_index)
    return torch.cat([images, ids], dim=1), torch.cat([torch.ones_like(images), mask.long()], dim=1)


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_and_loss(pair: Pair, batch: int) -> None:
    theirs, ours = pair
    prompts, extra, soft, _, _ = asked(ours, batch)
    texts = ours.tokenizer.encode_pairs(prompts, ["a dog", "it is a cat in the snow", "no"][:batch], 96)
    all_ids, all_mask = with_images(theirs, texts.ids, texts.mask)
    labels = texts.labels
    if not ours.config.language.encoder_decoder:
        labels = torch.cat([torch.full((batch, Q), IGNORED), labels], dim=1)
    want = theirs(
        pixel_values=their_pixels(ours, batch),
        input_ids=all_ids,
        attention_mask=all_mask,
        labels=labels,
        **extra,
    )
    actual = ours.net.compute_logits(soft, texts)
    if ours.config.language.encoder_decoder:
        real = texts.labels != IGNORED
        torch.testing.assert_close(actual[real], want.logits[real], atol=ATOL, rtol=0)
    else:
        torch.testing.assert_close(
            actual[texts.mask], want.logits[:, Q - 1 : -1][texts.mask], atol=ATOL, rtol=0
        )
    torch.testing.assert_close(ours.net.compute_loss(soft, texts), want.loss, atol=ATOL, rtol=0)
    assert (
        batch == 1 or actual[:, 0].std(dim=0).mean() > 0.05
    )  # weights that say the same of everything prove nothing


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("beams", [1, 3])
def test_generated_ids(pair: Pair, batch: int, beams: int) -> None:
    theirs, ours = pair
    language = ours.config.language
    _, extra, soft, ids, mask = asked(ours, batch)
    actual = ours.net.generate(soft, ids, mask, GenerationOptions(max_new_tokens=12, num_beams=beams))
    rows = []
    for row in range(batch):  # theirs without any padding
        length = int(mask[row].sum())
        all_ids, all_mask = with_images(theirs, ids[row : row + 1, :length], mask[row : row + 1, :length])
        options_of_row = {
            name: value[row : row + 1, : int(extra["qformer_attention_mask"][row].sum())]
            for name, value in extra.items()
        }
        written = theirs.generate(
            pixel_values=their_pixels(ours, batch)[row : row + 1], input_ids=all_ids, attention_mask=all_mask,
            max_new_tokens=12, num_beams=beams, do_sample=False, eos_token_id=language.end_id,
            pad_token_id=language.pad_id, **options_of_row,
        )  # fmt: skip
        new = written[0, 1:] if language.encoder_decoder else written[0, all_ids.shape[1] :]
        rows.append(new.tolist())
    ended = [row[: row.index(language.end_id) + 1] if language.end_id in row else row for row in rows]
    wanted = [row + [language.pad_id] * (actual.shape[1] - len(row)) for row in ended]
    assert actual.tolist() == wanted
    assert batch == 1 or len({tuple(row) for row in wanted}) > 1
