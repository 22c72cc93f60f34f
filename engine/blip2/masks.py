"""The three self-attention masks of BLIP-2, figure 2. True = may attend, everywhere in qseek.

The sequence is Q queries, then T text tokens. Rows ask, columns answer. Shapes: B pairs, Q queries, T tokens.
A mask broadcasts over heads: (B, 1, rows, columns).
"""

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


def unimodal_mask(text_mask_BT: Tensor, num_queries: int) -> Tensor:
    """ITC in one joint sequence: queries and text do not see each other. Returns (B, 1, Q+T, Q+T).

    The model runs the two sides as separate passes instead (same result, less work); this mask states what
    they amount to, and the tests hold the two against each other.
    """
    batch, tokens = text_mask_BT.shape
    total = num_queries + tokens
    mask = text_mask_BT.new_zeros(batch, total, total)
    mask[:, :num_queries, :num_queries] = True
    mask[:, num_queries:, num_queries:] = text_mask_BT[:, None, :]
    return mask[:, None]


def multimodal_causal_mask(text_mask_BT: Tensor, num_queries: int) -> Tensor:
    """ITG in one joint sequence: queries see queries, text sees queries and its past. Returns (B, 1, Q+T, Q+T)."""
    batch, tokens = text_mask_BT.shape
    total = num_queries + tokens
    mask = text_mask_BT.new_zeros(batch, 1, total, total)
    mask[:, :, :num_queries, :num_queries] = True
    mask[:, :, num_queries:] = causal_text_mask(text_mask_BT, num_queries)
    return mask
