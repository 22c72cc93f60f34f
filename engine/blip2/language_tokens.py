"""Prompts and captions -> token ids of the language model, and back.

Shapes: B texts, T tokens that are read, U tokens that are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from engine.blip2.config import LanguageConfig
from engine.errors import DataError, QueryError

IGNORED = -100
"""The label of what is not learned."""


@dataclass(frozen=True)
class LanguageBatch:
    """ids, mask (True = a token): (B, T), padded at the right. labels: ids that are learned, IGNORED elsewhere; of a
    decoder (B, T), in the places of `ids`, of an encoder-decoder (B, U), what its decoder writes."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> LanguageBatch:
        return LanguageBatch(self.ids.to(device), self.mask.to(device), self.labels.to(device))


class LanguageTokenizer:
    """The language model's tokenizer, with what `LanguageConfig` says of starts, ends and padding.

    num_queries: soft prompts before the text, which take positions, too.
    """

    def __init__(self, tokenizer: Tokenizer, config: LanguageConfig, num_queries: int):
        self.tokenizer, self.config = tokenizer, config
        self.room = config.max_positions - num_queries
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def prompts(self, prompts: Sequence[str], max_new_tokens: int) -> tuple[Tensor, Tensor]:
        """Prompts to be continued -> ids (B, T) int64, mask (B, T) bool. "" asks for a text without a beginning.

        Raises QueryError for a prompt that leaves the model no room for `max_new_tokens`, and for more of them than it
        writes.
        """
        room = self.room - (0 if self.config.encoder_decoder else max_new_tokens)
        if room < 1:
            raise QueryError(
                f"{max_new_tokens:,} new tokens are more than the language model writes: it has {self.room:,} places "
                "for prompt and text. Ask for fewer."
            )
        rows = [self._prompt_ids(prompt) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > room:
                raise QueryError(
                    f"The prompt {prompt[:40]!r}... has {len(row):,} tokens; the language model reads at most {room:,} "
                    f"beside the photo's and {max_new_tokens} new ones. Shorten it."
                )
        return self._padded(rows)

    def pairs(self, prompts: Sequence[str], texts: Sequence[str], max_tokens: int) -> LanguageBatch:
        """Prompts and what follows them, to be learned.

        max_tokens: of prompt and text together in a decoder, of each in an encoder-decoder; what is beyond is cut off,
        the end as well (LAVIS: 32). Without a prompt a decoder also learns its start token, as LAVIS has it. Raises
        DataError for an empty text, and for a prompt that leaves no room for one.
        """
        empty = [number for number, text in enumerate(texts) if not text.strip()]
        if empty:
            raise DataError(f"{len(empty)} of {len(texts)} captions are empty (first: number {empty[0]}).")
        if self.config.encoder_decoder:
            ids, mask = self._padded([self._prompt_ids(prompt)[:max_tokens] for prompt in prompts])
            written, written_mask = self._padded([self._ended(text.strip())[:max_tokens] for text in texts])
            return LanguageBatch(ids, mask, written.masked_fill(~written_mask, IGNORED))
        rows, num_given = [], []
        for prompt, text in zip(prompts, texts, strict=True):
            given = self._prompt_ids(prompt)
            if len(given) >= max_tokens:
                raise DataError(
                    f"The prompt {prompt!r} has {len(given)} tokens and leaves no room for a caption within "
                    f"max_tokens = {max_tokens}; shorten it, or raise max_tokens."
                )
            joined = f"{prompt.rstrip()} {text.strip()}" if prompt.strip() else text.strip()
            rows.append([*self._start(), *self._ended(joined)][:max_tokens])
            num_given.append(len(given) if prompt.strip() else 0)
        ids, mask = self._padded(rows)
        learned = mask & (torch.arange(ids.shape[1]) >= torch.tensor(num_given)[:, None])
        return LanguageBatch(ids, mask, ids.masked_fill(~learned, IGNORED))

    def fits(self, prompt: str, text: str, max_tokens: int) -> bool:
        """Whether `pairs` would cut nothing off."""
        if self.config.encoder_decoder:
            return max(len(self._prompt_ids(prompt)), len(self._ended(text.strip()))) <= max_tokens
        joined = f"{prompt.rstrip()} {text.strip()}"
        return len(self._start()) + len(self._ended(joined)) <= max_tokens

    def decode(self, ids_BU: Tensor) -> list[str]:
        """What `Captioner.generate` wrote -> texts."""
        texts = []
        for row in ids_BU.tolist():
            end = row.index(self.config.end_id) if self.config.end_id in row else len(row)
            texts.append(self.tokenizer.decode(row[:end], skip_special_tokens=True).strip())
        return texts

    def _prompt_ids(self, prompt: str) -> list[int]:
        """A space at a prompt's end belongs to the word that follows."""
        prompt = prompt.rstrip()
        return self._ended(prompt) if self.config.encoder_decoder else [*self._start(), *self._ids(prompt)]

    def _start(self) -> list[int]:
        return [] if self.config.start_id is None else [self.config.start_id]

    def _ended(self, text: str) -> list[int]:
        return [*self._ids(text), self.config.end_id]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.config.pad_id] * (longest - len(row)) for row in rows])
        return ids, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
