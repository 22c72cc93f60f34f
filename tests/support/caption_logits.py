"""Compute the logits of the ITG head for all tokens of a text at once.

The product writes captions token by token (engine/blip2/itg_decoding.py); tests compare both ways.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from engine.blip2.layers import KeysValues
from engine.blip2.retriever import Retriever


def caption_logits(net: Retriever, past: Sequence[KeysValues], ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Compute next-token logits (B, T, vocabulary).

    past: keys and values of the queries in each layer, from `QFormer.read_photos`. ids_BT: begin with [DEC].
    mask_BT: True at tokens, False at padding.
    """
    return net.caption_head(net.qformer.write_texts(past, ids_BT, mask_BT), net.qformer.words)
