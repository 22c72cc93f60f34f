"""Convert texts to the token ids that the Q-Former reads, and ids back to text.

Shapes: B texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from engine.errors import CheckpointError, QueryError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextTokenizer:
    """A WordPiece tokenizer with BERT's layout: [CLS], the words, [SEP], and padding up to the longest text of a batch.

    tokenizer: a `tokenizers.Tokenizer` with the tokens [PAD], [CLS], [SEP] and [DEC]; raises CheckpointError where it
    lacks one. max_tokens: the longest text, [CLS] and [SEP] counted, at least 3.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int):
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.pad_id, self.cls_id, self.sep_id = (self._id(t) for t in ("[PAD]", "[CLS]", "[SEP]"))
        self.dec_id = self._id("[DEC]")
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def _id(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise CheckpointError(
                f"The tokenizer has no {token} token, which BLIP-2 needs. Give a tokenizer.json that has it."
            )
        return number

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Return ids (B, T) int64, mask (B, T) bool (True = a token), and how many tokens of each text were cut off.

        T is the length of the longest text, at most `max_tokens` with [CLS] and [SEP] counted. Raises QueryError for an
        empty text.
        """
        rows, cut = [], []
        for text in texts:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            if not ids:
                raise QueryError(f"The text {text!r} is empty. Write what the photo shows.")
            room = self.max_tokens - 2
            cut.append(max(0, len(ids) - room))
            rows.append([self.cls_id, *ids[:room], self.sep_id])
        longest = max((len(row) for row in rows), default=0)
        ids_BT = torch.full((len(rows), longest), self.pad_id, dtype=torch.long)
        for row_number, row in enumerate(rows):
            ids_BT[row_number, : len(row)] = torch.tensor(row)
        lengths = torch.tensor([len(row) for row in rows]).view(-1, 1)
        return ids_BT, torch.arange(longest) < lengths, cut

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)
