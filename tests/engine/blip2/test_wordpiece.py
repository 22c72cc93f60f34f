"""Pixels and token ids equal those that were computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SPECIAL, tiny_tokenizer
from tokenizers import Tokenizer, models

from engine.blip2.config import CLIP_MEAN, CLIP_STD
from engine.blip2.pixels import to_pixels
from engine.blip2.wordpiece import TextTokenizer
from engine.errors import CheckpointError, QueryError
from engine.pictures.squares import squash


def test_squash_has_no_crop() -> None:
    """A picture whose left half is black and right half is white stays so when it is squashed, however wide it was."""
    for width, height in ((90, 30), (30, 90), (64, 64), (6, 4)):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, width // 2 :] = 255
        actual = squash(Image.fromarray(pixels), 16)
        assert actual.shape == (16, 16, 3) and actual.dtype == np.uint8
        assert (actual[:, :5] < 30).all() and (actual[:, -5:] > 225).all()


def test_squash_is_pillows_bicubic() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    want = np.asarray(picture.resize((20, 20), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(squash(picture, 20), want)
    assert not np.array_equal(want, np.asarray(picture.resize((20, 20), Image.Resampling.BILINEAR)))


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    actual = squash(Image.fromarray(pixels), 16)
    np.testing.assert_array_equal(actual, pixels)
    actual[:] = 0  # it is a copy that may be written to


def test_to_pixels_by_hand() -> None:
    pictures = np.zeros((2, 2, 3, 3), np.uint8)
    pictures[0, 1, 2] = (255, 51, 102)  # row 1, column 2
    actual = to_pixels(pictures, (0.5, 0.1, 0.2), (0.5, 0.25, 0.1))
    assert actual.shape == (2, 3, 2, 3) and actual.dtype == torch.float32
    torch.testing.assert_close(actual[0, :, 1, 2], torch.tensor([1.0, 0.4, 2.0]))
    torch.testing.assert_close(actual[1, :, 0, 0], torch.tensor([-1.0, -0.4, -2.0]))
    assert actual.is_contiguous(memory_format=torch.channels_last)


def test_to_pixels_takes_views() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    want = (
        pictures[::2, :, ::-1].transpose(0, 3, 1, 2) / 255 - np.reshape(CLIP_MEAN, (3, 1, 1))
    ) / np.reshape(CLIP_STD, (3, 1, 1))
    actual = to_pixels(pictures[::2, :, ::-1], CLIP_MEAN, CLIP_STD)
    np.testing.assert_allclose(actual.numpy(), want, atol=1e-6)


@pytest.fixture
def read() -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer(), 6)


def ids_of(*tokens: str) -> list[int]:
    return [tiny_tokenizer().token_to_id(token) for token in tokens]


def test_texts_are_laid_out_as_bert_does(read: TextTokenizer) -> None:
    ids, mask, cut = read(["A red DOG", "cat"])
    assert ids.tolist() == [
        ids_of("[CLS]", "a", "red", "dog", "[SEP]"),
        ids_of("[CLS]", "cat", "[SEP]", *["[PAD]"] * 2),
    ]
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert (ids.dtype, mask.dtype, cut) == (torch.int64, torch.bool, [0, 0])
    assert read.decode(ids[0].tolist()) == "a red dog"


def test_padding_goes_to_the_batchs_longest(read: TextTokenizer) -> None:
    assert read(["cat"])[0].shape == (1, 3)
    assert read(["cat", "a a a a a a a a"])[0].shape == (2, 6)
    ids, mask, cut = read([])
    assert ids.shape == mask.shape == (0, 0) and cut == []


def test_a_long_text_is_cut_and_keeps_its_end_token(read: TextTokenizer) -> None:
    ids, mask, cut = read(["a red dog runs in the snow", "a red dog runs", "cat"])
    assert cut == [3, 0, 0]
    want = ids_of("[CLS]", "a", "red", "dog", "runs", "[SEP]")
    assert ids[0].tolist() == ids[1].tolist() == want and mask[:2].all()


def test_words_beyond_the_vocabulary_are_spelled(read: TextTokenizer) -> None:
    assert read(["fox"])[0][0].tolist() == ids_of("[CLS]", "f", "##o", "##x", "[SEP]")
    assert read(["写"])[0][0].tolist() == ids_of("[CLS]", "[UNK]", "[SEP]")


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u200b"])
def test_an_empty_text_is_refused(read: TextTokenizer, text: str) -> None:
    with pytest.raises(QueryError, match=r"is empty\. Write what the photo shows"):
        read(["cat", text])


@pytest.mark.parametrize("name", ["[PAD]", "[CLS]", "[SEP]", "[DEC]"])
def test_a_tokenizer_without_a_special_token_is_refused(name: str) -> None:
    vocabulary = {token: number for number, token in enumerate(SPECIAL) if token != name}
    with pytest.raises(CheckpointError, match=rf"no \{name[:-1]}\] token"):
        TextTokenizer(Tokenizer(models.WordLevel(vocabulary, "[UNK]")), 6)


def test_a_tokenizers_own_cut_and_padding_are_off() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=30)
    ids, _, cut = TextTokenizer(tokenizer, 6)(["a red dog"])
    assert ids.shape == (1, 5) and cut == [0]
