"""Prompts, random pictures and settings that tests of captioners share."""

from __future__ import annotations

import numpy as np
from tiny import SIDE
from tiny_language import byte_tokenizer

from engine.blip2.generation import GenerationOptions

SHORT = GenerationOptions(max_new_tokens=8)
PROMPTS = ("a red dog", "the", "on the house a cat runs")


def random_pictures(count: int, seed: int = 0) -> np.ndarray:
    """Return random pictures (count, SIDE, SIDE, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def encode_text(kind: str, text: str) -> list[int]:
    """Return the ids of a text in the vocabulary of a language model, without special tokens."""
    return byte_tokenizer(kind).encode(text, add_special_tokens=False).ids
