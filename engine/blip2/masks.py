"""Make the self-attention masks of BLIP-2's figure 2, one for each of its three losses. True = may attend.

The figure reads queries and text in one sequence, Q queries and then T text tokens. Here ITC and ITG are computed in
two passes, one of the queries and one of the text, so that the pass of a photo serves many texts. Their masks are those
of the text's pass; tests/engine/blip2/test_masks.py compares these passes with the figure's single pass.

Rows ask, columns are asked. A mask broadcasts over heads: (B, 1, rows, columns). Shapes: B pairs, Q queries, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def padding_mask(text_mask_BT: Tensor) -> Tensor:
    """Return the mask (B, 1, 1, T) of a text alone (ITC, text side): every token sees all tokens but the padding."""
    return text_mask_BT[:, None, None, :]


def bidirectional_mask(text_mask_BT: Tensor, num_queries: int) -> Tensor:
    """Return the mask (B, 1, 1, Q+T) of ITM: queries and text see each other."""
    queries = text_mask_BT.new_ones(text_mask_BT.shape[0], num_queries)
    return torch.cat([queries, text_mask_BT], dim=1)[:, None, None, :]


def causal_text_mask(text_mask_BT: Tensor, num_queries: int) -> Tensor:
    """Return the mask (B, 1, T, Q+T) of ITG for the text's rows: a token sees all queries, itself and the tokens
    before.

    The rows of the queries need no mask: queries see only each other, so that their keys and values are those of the
    ITC pass and are used again.
    """
    batch, tokens = text_mask_BT.shape
    past = torch.ones(tokens, tokens, dtype=torch.bool, device=text_mask_BT.device).tril()
    text = past[None] & text_mask_BT[:, None, :]
    queries = text.new_ones(batch, tokens, num_queries)
    return torch.cat([queries, text], dim=2)[:, None]
