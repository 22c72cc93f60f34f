"""What the ITG head says of every token of a text at once; captions are written token by token (`itg_decoding`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from engine.blip2.layers import KeysValues
from engine.blip2.retriever import Retriever


def caption_logits(net: Retriever, past: Sequence[KeysValues], ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Compute next-token logits (B, T, vocabulary). ids: begin with [DEC]. past: from `QFormer.read_photos`."""
    return net.caption_head(net.qformer.write_texts(past, ids_BT, mask_BT), net.qformer.words)
