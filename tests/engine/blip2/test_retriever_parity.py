"""The retrieval model gives the numbers of transformers' Blip2ForImageTextRetrieval, whose random weights we read."""

from __future__ import annotations

import pytest
import torch
from random_blip2 import ATOL, make_inputs, random_retriever, save_retriever_folder
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval

from engine.blip2.retriever import Retriever, itc_scores
from engine.checkpoints.building import load_net

Pair = tuple[Blip2ForImageTextRetrieval, Retriever]


@pytest.fixture(scope="module", params=["one file", "shards", "bin"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return (their model, our model) with equal weights: ours is read from the folder that theirs saved."""
    theirs, folder = random_retriever(), tmp_path_factory.mktemp("theirs")
    save_retriever_folder(theirs, folder, request.param)
    return theirs, load_net(folder)[0].eval().requires_grad_(False)


def assert_close(actual: Tensor, want: Tensor) -> None:
    assert actual.shape == want.shape
    torch.testing.assert_close(actual, want, atol=ATOL, rtol=0)


@pytest.mark.parametrize("batch", [1, 3])
def test_itc_scores(pair: Pair, batch: int) -> None:
    theirs, ours = pair
    pixels, ids, mask = make_inputs(batch)
    want = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask.long())
    patches = ours.encode_patches(pixels)
    assert_close(patches, want.vision_model_output.last_hidden_state)
    photos, texts = ours.encode_photos(ours.compute_photo_keys(patches)), ours.encode_texts(ids, mask)
    assert_close(photos, want.image_embeds)
    assert_close(texts, want.text_embeds)
    assert_close(itc_scores(photos, texts), want.logits_per_image)
    if batch > 1:  # weights that say the same of everything would prove nothing
        assert want.logits_per_image.std() > 0.05


@pytest.mark.parametrize("batch", [1, 3])
def test_itm_logits(pair: Pair, batch: int) -> None:
    theirs, ours = pair
    pixels, ids, mask = make_inputs(batch)
    keys = ours.compute_photo_keys(ours.encode_patches(pixels))
    for turn in range(batch):  # every photo with every text
        texts = torch.arange(batch).roll(turn)
        want = theirs(
            pixel_values=pixels,
            input_ids=ids[texts],
            attention_mask=mask[texts].long(),
            use_image_text_matching_head=True,
        ).logits_per_image
        assert_close(ours.match(keys, ids[texts], mask[texts]), want)
        assert batch == 1 or want.std(dim=0).min() > 0.05


def test_padding_changes_nothing(pair: Pair) -> None:
    """Return the ids and masks of a text alone, and of this text padded beside a longer one."""
    _, ours = pair
    pixels, ids, mask = make_inputs(3)
    keys = ours.compute_photo_keys(ours.encode_patches(pixels))
    together, vectors = ours.match(keys, ids, mask), ours.encode_texts(ids, mask)
    for row in range(3):
        length = int(mask[row].sum())
        keys_of_row = [(k[row : row + 1], v[row : row + 1]) for k, v in keys]
        alone = ids[row : row + 1, :length], mask[row : row + 1, :length]
        assert_close(ours.match(keys_of_row, *alone), together[row : row + 1])
        assert_close(ours.encode_texts(*alone), vectors[row : row + 1])
