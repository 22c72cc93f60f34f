"""The self-attention masks of BLIP-2, figure 2, one for each of its three losses. True = may attend, as everywhere.

The figure reads queries and text in one sequence: Q queries, then T text tokens. ITC and ITG are computed in two passes
here, of the queries and of the text, so that one photo's pass serves many texts; their masks are those of the text's
pass alone, and tests/engine/blip2/test_masks.py holds the passes against the figure's.

Rows ask, columns answer. Shapes: B pairs, Q queries, T tokens.
A mask broadcasts over heads: (B, 1, rows, columns).
"""

from __future__ import annotations

import torch
from torch import Tensor


def padding_mask(text_mask_BT: Tensor) -> Tensor:
    """Text alone (ITC, text side): every token sees the real tokens. Returns (B, 1, 1, T)."""
    return text_mask_BT[:, None, None, :]


def bidirectional_mask(text_mask_BT: Tensor, num_queries: int) -> Tensor:
    """ITM: queries and text see each other. Returns (B, 1, 1, Q+T)."""
    queries = text_mask_BT.new_ones(text_mask_BT.shape[0], num_queries)
    return torch.cat([queries, text_mask_BT], dim=1)[:, None, None, :]


def causal_text_mask(text_mask_BT: Tensor, num_queries: int) -> Tensor:
    """ITG, the text's rows only: every token sees all queries, itself and its past. Returns (B, 1, T, Q+T).

    The queries' own rows need no mask: they see each other alone, so their keys and values are those of the
    unimodal (ITC) pass and are reused.
    """
    batch, tokens = text_mask_BT.shape
    past = torch.ones(tokens, tokens, dtype=torch.bool, device=text_mask_BT.device).tril()
    text = past[None] & text_mask_BT[:, None, :]
    queries = text.new_ones(batch, tokens, num_queries)
    return torch.cat([queries, text], dim=2)[:, None]
