"""A checkpoint that has been opened: its config, its tensors under our names, its tokenizer, the files it consists of.

The readers of every layout return one of these three; the network is built from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.blip2.config import Blip2Config, CaptionerConfig
from engine.checkpoints.tensors import StoredTensor

MAX_TOKENS = 35
"""LAVIS' evaluation reads so many, [CLS] and [SEP] counted."""


@dataclass(frozen=True)
class RetrieverSource:
    """config: what to build. tensors: under our names. tokenizer: with [DEC]. files: what decides its numbers."""

    config: Blip2Config
    tensors: Mapping[str, StoredTensor]
    tokenizer: Tokenizer
    files: tuple[Path, ...]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


@dataclass(frozen=True)
class LanguageSource:
    """config: transformers' own. tensors: under transformers' names, read one at a time. files: what decides its
    numbers."""

    config: Any
    tensors: Mapping[str, StoredTensor]
    tokenizer: Tokenizer
    files: tuple[Path, ...]


@dataclass(frozen=True)
class CaptionerSource:
    """config: what to build. tensors: all but the language model's, under our names. tokenizer: of a Q-Former that
    reads the prompt, None of another. files: what decides the model's numbers."""

    config: CaptionerConfig
    tensors: Mapping[str, StoredTensor]
    language: LanguageSource
    tokenizer: Tokenizer | None
    files: tuple[Path, ...]

    @property
    def num_parameters(self) -> int:
        """Return the number of all parameters that are loaded, those of a shared image encoder too."""
        tensors = [*self.tensors.values(), *self.language.tensors.values()]
        return sum(math.prod(tensor.shape) for tensor in tensors)

    @property
    def num_shared_parameters(self) -> int:
        """Return the number of parameters of a shared image encoder, which lies in the folder of another model."""
        if not self.config.encoder:
            return 0
        return sum(math.prod(tensor.shape) for tensor in encoder_tensors(self.tensors).values())


def encoder_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Select the tensors of the image encoder."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith("vision.")}
