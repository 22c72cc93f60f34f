"""Reranking as the original code does it, on our weights: the other side of the rerank benchmark.

A transcription of what LAVIS runs for one text and its k candidates (`compute_itm`, called once with all k): the text
is padded to 35 tokens and repeated k times, every layer computes every row, the photos' keys and values are read
again for this text, attention is written out (matrix product, softmax, matrix product). Padded positions get -10000.

Shapes: B candidates, P patches, V vision width, Q queries, T = 35 tokens, D width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.blip2.layers import MLP, Attention
from engine.models.retrieval_model import RetrievalModel

if TYPE_CHECKING:
    from transformers import Blip2ForImageTextRetrieval

PADDED = 35


def reference_match(model: RetrievalModel, text: str, patches_BPV: Tensor) -> Tensor:
    """Match logits (B, 2) of one text and B photos, in the model's dtype."""
    former, tokenizer = model.net.qformer, model.tokenizer
    words = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids[: PADDED - 2]
    row = [tokenizer.cls_id, *words, tokenizer.sep_id]
    ids = torch.tensor([row + [tokenizer.pad_id] * (PADDED - len(row))], device=patches_BPV.device)
    seen = torch.tensor([[1] * len(row) + [0] * (PADDED - len(row))], device=patches_BPV.device)
    batch, num_queries = len(patches_BPV), former.config.num_queries
    ids, seen = ids.repeat(batch, 1), seen.repeat(batch, 1)

    queries = former.queries.expand(batch, -1, -1)
    texts = former.words(ids) + former.positions(torch.arange(PADDED, device=ids.device))
    hidden = former.norm(torch.cat([queries, texts], dim=1))
    all_seen = torch.cat([seen.new_ones(batch, num_queries), seen], dim=1)
    mask = (1.0 - all_seen[:, None, None, :].to(hidden.dtype)) * -10000.0
    for layer in former.layers:
        hidden = _attend(layer.attention, hidden, hidden, mask)
        read = hidden[:, :num_queries]
        if layer.cross_attention is not None:
            read = _attend(layer.cross_attention, read, patches_BPV, None)
        hidden = torch.cat(
            [_feed(layer.query_mlp, read), _feed(layer.text_mlp, hidden[:, num_queries:])], dim=1
        )
    return model.net.match_head(hidden[:, :num_queries]).mean(dim=1)


class _Given(torch.nn.Module):
    """Stands in for transformers' encoder: its pixels are the patches."""

    def forward(self, pixel_values: Tensor, **_: object) -> tuple[Tensor]:
        return (pixel_values,)


def transformers_match(
    theirs: Blip2ForImageTextRetrieval, model: RetrievalModel, text: str, patches_BPV: Tensor
) -> Tensor:
    """Match logits (B, 2) float32 by transformers' own forward, which loses its encoder; 64 photos at a time."""
    theirs.vision_model = _Given()
    ids, mask, _ = model.tokenizer([text])
    rows = [
        theirs(
            pixel_values=part,
            input_ids=ids.to(model.device).expand(len(part), -1),
            attention_mask=mask.to(model.device).long().expand(len(part), -1),
            use_image_text_matching_head=True,
        ).logits_per_image.float()
        for part in patches_BPV.split(64)
    ]
    return torch.cat(rows)


def _attend(layer: Attention, hidden_BSD: Tensor, source_BND: Tensor, mask: Tensor | None) -> Tensor:
    def heads(rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], layer.num_heads, -1).permute(0, 2, 1, 3)

    query = heads(layer.query(hidden_BSD))
    key, value = heads(layer.key(source_BND)), heads(layer.value(source_BND))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + mask
    mixed = scores.softmax(dim=-1) @ value
    mixed = mixed.permute(0, 2, 1, 3).contiguous().view(*hidden_BSD.shape)
    return layer.norm(layer.out(mixed) + hidden_BSD)


def _feed(layer: MLP, hidden_BSD: Tensor) -> Tensor:
    return layer.norm(layer.down(F.gelu(layer.up(hidden_BSD))) + hidden_BSD)
