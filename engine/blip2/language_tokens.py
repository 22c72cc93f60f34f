"""Convert prompts and captions to token ids of the language model, and ids back to text.

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
"""Label of a token that is not learned."""


@dataclass(frozen=True)
class LanguageBatch:
    """Texts as the language model reads and learns them.

    ids, mask: (B, T), padded at the right; the mask is True for tokens. labels: the ids that are learned, IGNORED
    elsewhere; for a decoder (B, T) in the places of `ids`, for an encoder-decoder the text (B, U) that it writes.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> LanguageBatch:
        """Return the batch on a device."""
        return LanguageBatch(self.ids.to(device), self.mask.to(device), self.labels.to(device))


class LanguageTokenizer:
    """The tokenizer of the language model, with the start, end and padding of `LanguageConfig`.

    num_queries: number of soft prompts before the text; they take positions of the language model.
    """

    def __init__(self, tokenizer: Tokenizer, config: LanguageConfig, num_queries: int):
        self.tokenizer, self.config = tokenizer, config
        self.room = config.max_positions - num_queries
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def encode_prompts(self, prompts: Sequence[str], max_new_tokens: int) -> tuple[Tensor, Tensor]:
        """Return ids (B, T) int64 and mask (B, T) bool of prompts that a text goes on from.

        An empty prompt asks for a text without a given beginning. Raises QueryError for a prompt that leaves no room
        for `max_new_tokens` more tokens, and when the model cannot write so many.
        """
        room = self.room - (0 if self.config.encoder_decoder else max_new_tokens)
        if room < 1:
            raise QueryError(
                f"{max_new_tokens:,} new tokens are more than the language model can write: it has room for "
                f"{self.room:,} tokens of prompt and text. Ask for fewer."
            )
        rows = [self._encode_prompt(prompt) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > room:
                raise QueryError(
                    f"The prompt {prompt[:40]!r}... has {len(row):,} tokens; the language model reads at most {room:,} "
                    f"beside the photo's and {max_new_tokens} new ones. Shorten it."
                )
        return self._pad(rows)

    def encode_pairs(self, prompts: Sequence[str], texts: Sequence[str], max_tokens: int) -> LanguageBatch:
        """Return a batch in which each text is learned as the continuation of its prompt.

        max_tokens: the most tokens of prompt and text together for a decoder, of each of them for an encoder-decoder;
        the rest is cut off, the end token as well (LAVIS: 32). Without a prompt a decoder also learns its start token,
        as in LAVIS. Raises DataError for an empty text, and for a prompt that leaves no room for a text.
        """
        empty = [number for number, text in enumerate(texts) if not text.strip()]
        if empty:
            raise DataError(f"{len(empty)} of {len(texts)} captions are empty (first: number {empty[0]}).")
        if self.config.encoder_decoder:
            ids, mask = self._pad([self._encode_prompt(prompt)[:max_tokens] for prompt in prompts])
            written, written_mask = self._pad(
                [self._encode_with_end(text.strip())[:max_tokens] for text in texts]
            )
            return LanguageBatch(ids, mask, written.masked_fill(~written_mask, IGNORED))
        rows, prompt_lengths = [], []
        for prompt, text in zip(prompts, texts, strict=True):
            prompt_ids = self._encode_prompt(prompt)
            if len(prompt_ids) >= max_tokens:
                raise DataError(
                    f"The prompt {prompt!r} has {len(prompt_ids)} tokens and leaves no room for a caption within "
                    f"max_tokens = {max_tokens}; shorten it, or raise max_tokens."
                )
            joined = f"{prompt.rstrip()} {text.strip()}" if prompt.strip() else text.strip()
            rows.append([*self._start_ids(), *self._encode_with_end(joined)][:max_tokens])
            prompt_lengths.append(len(prompt_ids) if prompt.strip() else 0)
        ids, mask = self._pad(rows)
        learned = mask & (torch.arange(ids.shape[1]) >= torch.tensor(prompt_lengths)[:, None])
        return LanguageBatch(ids, mask, ids.masked_fill(~learned, IGNORED))

    def fits(self, prompt: str, text: str, max_tokens: int) -> bool:
        """Return whether a prompt and its text have at most `max_tokens` tokens, so that `encode_pairs` cuts
        nothing.
        """
        if self.config.encoder_decoder:
            return (
                max(len(self._encode_prompt(prompt)), len(self._encode_with_end(text.strip()))) <= max_tokens
            )
        joined = f"{prompt.rstrip()} {text.strip()}"
        return len(self._start_ids()) + len(self._encode_with_end(joined)) <= max_tokens

    def decode(self, ids_BU: Tensor) -> list[str]:
        """Return the texts of the ids that `Captioner.generate` wrote, each up to its end token."""
        texts = []
        for row in ids_BU.tolist():
            end = row.index(self.config.end_id) if self.config.end_id in row else len(row)
            texts.append(self.tokenizer.decode(row[:end], skip_special_tokens=True).strip())
        return texts

    def _encode_prompt(self, prompt: str) -> list[int]:
        prompt = prompt.rstrip()  # A space at the end belongs to the word that follows.
        return (
            self._encode_with_end(prompt)
            if self.config.encoder_decoder
            else [*self._start_ids(), *self._encode(prompt)]
        )

    def _start_ids(self) -> list[int]:
        return [] if self.config.start_id is None else [self.config.start_id]

    def _encode_with_end(self, text: str) -> list[int]:
        return [*self._encode(text), self.config.end_id]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _pad(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.config.pad_id] * (longest - len(row)) for row in rows])
        return ids, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
