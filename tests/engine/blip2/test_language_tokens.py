"""Prompts and captions are laid out as each language model reads them, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompts_and_pictures import encode_text
from tiny_language import byte_tokenizer, language_config

from engine.blip2.language_tokens import IGNORED, LanguageTokenizer
from engine.checkpoints.language_folder import read_language_config
from engine.errors import CheckpointError, DataError


def language_tokenizer(kind: str) -> LanguageTokenizer:
    tokenizer = byte_tokenizer(kind)
    return LanguageTokenizer(tokenizer, read_language_config(language_config(kind), tokenizer, Path("x")), 8)


def test_opt_layout() -> None:
    """OPT reads `</s> prompt text newline`, as in LAVIS; without a prompt, `</s>` is learned as well."""
    tokenizer = language_tokenizer("opt")
    newline = encode_text("opt", "\n")[0]
    assert (
        tokenizer.config.start_id == 2 and tokenizer.config.pad_id == 1 and tokenizer.config.end_id == newline
    )
    batch = tokenizer.encode_pairs(["a photo of ", ""], ["a cat", " a dog "], 64)
    first = [2, *encode_text("opt", "a photo of a cat"), newline]
    second = [2, *encode_text("opt", "a dog"), newline]
    assert batch.ids[0].tolist() == first and batch.mask[0].all()
    assert batch.ids[1].tolist() == second + [1] * (len(first) - len(second))
    given = 1 + len("a photo of")
    assert batch.labels[0].tolist() == [IGNORED] * given + first[given:]
    assert batch.labels[1].tolist() == second + [IGNORED] * (len(first) - len(second))
    cut = tokenizer.encode_pairs(["a photo of"], ["a cat"], 14)
    assert cut.ids[0].tolist() == first[:14]  # LAVIS cuts off the end token as well.
    ids, mask = tokenizer.encode_prompts(["a photo of ", ""], 8)
    assert ids[0].tolist() == first[:given] and ids[1][mask[1]].tolist() == [2]


def test_t5_layout() -> None:
    tokenizer = language_tokenizer("t5")
    assert (tokenizer.config.start_id, tokenizer.config.pad_id, tokenizer.config.end_id) == (None, 0, 1)
    batch = tokenizer.encode_pairs(["a photo of", ""], ["a cat", "dog"], 64)
    assert batch.ids[0].tolist() == [*encode_text("t5", "a photo of"), 1]
    assert batch.ids[1][batch.mask[1]].tolist() == [1]
    assert batch.labels[0].tolist() == [*encode_text("t5", "a cat"), 1]
    assert batch.labels[1].tolist() == [*encode_text("t5", "dog"), 1, IGNORED, IGNORED]


def test_llama_has_no_padding_token() -> None:
    """LLaMA's texts are padded with its end token, which is masked."""
    tokenizer = language_tokenizer("llama")
    assert (tokenizer.config.start_id, tokenizer.config.pad_id, tokenizer.config.end_id) == (1, 2, 2)
    batch = tokenizer.encode_pairs(["a", "the red"], ["cat", "dog"], 64)
    end = 1 + len("a cat") + 1
    assert batch.mask[0].sum() == end and batch.labels[0, end - 1] == 2
    assert (batch.labels[0, end:] == IGNORED).all() and (batch.ids[0, end:] == 2).all()


def test_tokenizers_that_do_not_fit() -> None:
    config = language_config("llama")
    config.eos_token_id = None
    with pytest.raises(CheckpointError, match=r"no end-of-text token\. Set eos_token_id"):
        read_language_config(config, byte_tokenizer("llama"), Path("x"))
    small = language_config("llama")
    small.vocab_size = 100
    with pytest.raises(CheckpointError, match="knows 100 tokens: it is the tokenizer of another model"):
        read_language_config(small, byte_tokenizer("llama"), Path("x"))


def test_captions_and_prompts_that_cannot_be_learned() -> None:
    tokenizer = language_tokenizer("opt")
    with pytest.raises(DataError, match=r"1 of 2 captions are empty \(first: number 1\)"):
        tokenizer.encode_pairs(["a", "a"], ["cat", " "], 64)
    with pytest.raises(DataError, match="leaves no room for a caption within max_tokens = 8"):
        tokenizer.encode_pairs(["a photo of"], ["cat"], 8)
