"""Picture -> pixels, sentence -> token ids.

Shapes: B pictures, H W pixels, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.errors import CheckpointError, QueryError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from engine.blip2.config import VisionConfig


def to_pixels(
    pictures_BHWC: np.ndarray, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in channels_last memory, normalised per channel.

    mean, std: per channel, of values scaled to [0, 1].
    """
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(pictures_BHWC)).to(device).permute(0, 3, 1, 2)
    shift = torch.tensor(mean, device=device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=device).view(1, 3, 1, 1)
    return pixels.to(torch.float32).div_(255).sub_(shift).div_(scale)  # in place: four times as fast on a CPU


def pixel_parts(
    pictures_BHWC: np.ndarray, vision: VisionConfig, at_once: int, device: torch.device, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """The pixels of so many pictures at a time, as the encoder of this config reads them."""
    for start in range(0, len(pictures_BHWC), at_once):
        some = pictures_BHWC[start : start + at_once]
        yield to_pixels(some, vision.mean, vision.std, device).to(dtype)


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
        import torch

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
