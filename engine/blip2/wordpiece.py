"""A sentence becomes the token ids that the Q-Former reads.

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
    """WordPiece ids with BERT's layout: [CLS] words [SEP], padded to the batch's longest.

    Wraps a `tokenizers.Tokenizer` that has [PAD], [CLS], [SEP] and [DEC]. Raises CheckpointError when it has not.
    max_tokens: the longest text, [CLS] and [SEP] counted, >= 3.
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
            raise CheckpointError(f"The tokenizer has no {token} token; a BLIP-2 tokenizer.json needs it.")
        return number

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Texts -> ids (B, T) int64, mask (B, T) bool (True = a token), tokens cut off of each text.

        T is the batch's longest, at most `max_tokens` with [CLS] and [SEP] counted.
        Raises QueryError for an empty text.
        """
        rows, cut = [], []
        for text in texts:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            if not ids:
                raise QueryError(f"The text {text!r} is empty; describe what the photo shows.")
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
        """Token ids -> text, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)
