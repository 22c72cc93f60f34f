"""Remember the pooled vectors of texts while the text half of a Q-Former is frozen: each text is read once a run.

Shapes: B texts, D Q-Former width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.blip2.retriever import Retriever
from engine.blip2.wordpiece import TextTokenizer

TEXTS_AT_ONCE = 256


class PooledTexts:
    """The results of `Retriever.pool_texts`, by text. The text half must not change while they are used."""

    def __init__(self, net: Retriever, tokenizer: TextTokenizer):
        self.net, self.tokenizer = net, tokenizer
        self.vectors: dict[str, Tensor] = {}

    def read(self, texts: Sequence[str]) -> Tensor:
        """Return the pooled vectors (B, D) of texts, in float32 on the CPU; those that are new are computed now."""
        new_texts = sorted({text for text in texts if text not in self.vectors}, key=len)
        for start in range(0, len(new_texts), TEXTS_AT_ONCE):
            part = new_texts[start : start + TEXTS_AT_ONCE]
            self.vectors.update(zip(part, self._compute(part), strict=True))
        return torch.stack([self.vectors[text] for text in texts])

    @torch.no_grad()
    def _compute(self, texts: Sequence[str]) -> Tensor:
        ids, mask, _ = self.tokenizer(list(texts))
        device, was_training = self.net.temperature.device, self.net.training
        self.net.eval()  # Dropout would make the vectors that are kept chance ones.
        pooled_BD = self.net.pool_texts(ids.to(device), mask.to(device)).float().cpu()
        self.net.train(was_training)
        return pooled_BD
