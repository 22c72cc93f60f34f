"""Hold an opened checkpoint: its config, its tensors under our names, its tokenizer, and its files.

The readers of all layouts return one of these three sources, and `building` makes the network from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.blip2.config import Blip2Config, CaptionerConfig
from engine.checkpoints.tensors import StoredTensor

MAX_TOKENS = 35
"""Number of tokens of a text that LAVIS' evaluation reads, [CLS] and [SEP] counted."""


@dataclass(frozen=True)
class RetrieverSource:
    """An opened retrieval checkpoint.

    tensors: by our names. tokenizer: has the token [DEC]. files: the files that decide the model's numbers. shared:
    names of the tensors that lie elsewhere, in the package of the image encoder.
    """

    config: Blip2Config
    tensors: Mapping[str, StoredTensor]
    tokenizer: Tokenizer
    files: tuple[Path, ...]
    shared: frozenset[str] = frozenset()

    @property
    def num_parameters(self) -> int:
        """Return the number of all parameters that are loaded, those of a shared image encoder included."""
        return count_parameters(self.tensors.values())

    @property
    def num_shared_parameters(self) -> int:
        """Return the number of parameters of a shared image encoder, which lies elsewhere."""
        return count_parameters(self.tensors[name] for name in self.shared)


@dataclass(frozen=True)
class LanguageSource:
    """An opened language model.

    config: the config of transformers. tensors: by the names of transformers. files: the files that decide its numbers.
    """

    config: Any
    tensors: Mapping[str, StoredTensor]
    tokenizer: Tokenizer
    files: tuple[Path, ...]


@dataclass(frozen=True)
class CaptionerSource:
    """An opened captioner.

    tensors: all tensors but those of the language model, by our names. tokenizer: the tokenizer of a Q-Former that
    reads the prompt, None where it does not. files: the files that decide the model's numbers. shared: names of the
    tensors that lie elsewhere, in the package of the image encoder or in the folder of another model.
    """

    config: CaptionerConfig
    tensors: Mapping[str, StoredTensor]
    language: LanguageSource
    tokenizer: Tokenizer | None
    files: tuple[Path, ...]
    shared: frozenset[str] = frozenset()

    @property
    def num_parameters(self) -> int:
        """Return the number of all parameters that are loaded, those of a shared image encoder included."""
        return count_parameters([*self.tensors.values(), *self.language.tensors.values()])

    @property
    def num_shared_parameters(self) -> int:
        """Return the number of parameters of a shared image encoder, which lies elsewhere."""
        return count_parameters(self.tensors[name] for name in self.shared)


def count_parameters(tensors: Iterable[StoredTensor]) -> int:
    """Return the number of values in tensors."""
    return sum(math.prod(tensor.shape) for tensor in tensors)


def select_encoder_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Select the tensors of the image encoder."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith("vision.")}
