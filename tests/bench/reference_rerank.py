"""Rerank candidates as the original code and transformers do, with the weights of this project.

Benchmarks compare qseek's reranking with it. `reference_match` is a transcription of what LAVIS runs for one text and
its k candidates (`compute_itm`, called once with all k): the text is padded to 35 tokens and repeated k times, every
layer computes every row, the keys and values of the photos are computed again for this text, and attention is written
out (matrix product, softmax, matrix product). Padded positions get -10000.

Shapes: B candidates, P patches, V vision width, Q queries, T = 35 tokens, D width; S and N rows of an attention.
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

NUM_TOKENS = 35


def reference_match(model: RetrievalModel, text: str, patches_BPV: Tensor) -> Tensor:
    """Compute the match logits (B, 2) of one text and B photos as LAVIS does, in the model's dtype."""
    qformer, tokenizer = model.net.qformer, model.tokenizer
    word_ids = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids[: NUM_TOKENS - 2]
    token_ids = [tokenizer.cls_id, *word_ids, tokenizer.sep_id]
    num_padded = NUM_TOKENS - len(token_ids)
    ids = torch.tensor([token_ids + [tokenizer.pad_id] * num_padded], device=patches_BPV.device)
    is_token = torch.tensor([[1] * len(token_ids) + [0] * num_padded], device=patches_BPV.device)
    batch, num_queries = len(patches_BPV), qformer.config.num_queries
    ids, is_token = ids.repeat(batch, 1), is_token.repeat(batch, 1)

    queries = qformer.queries.expand(batch, -1, -1)
    texts = qformer.words(ids) + qformer.positions(torch.arange(NUM_TOKENS, device=ids.device))
    hidden = qformer.norm(torch.cat([queries, texts], dim=1))
    is_visible = torch.cat([is_token.new_ones(batch, num_queries), is_token], dim=1)
    mask = (1.0 - is_visible[:, None, None, :].to(hidden.dtype)) * -10000.0
    for layer in qformer.layers:
        hidden = _attend(layer.attention, hidden, hidden, mask)
        queries, texts = hidden[:, :num_queries], hidden[:, num_queries:]
        if layer.cross_attention is not None:
            queries = _attend(layer.cross_attention, queries, patches_BPV, None)
        hidden = torch.cat(
            [_feed_forward(layer.query_mlp, queries), _feed_forward(layer.text_mlp, texts)], dim=1
        )
    return model.net.match_head(hidden[:, :num_queries]).mean(dim=1)


class _PatchesAsGiven(torch.nn.Module):
    """Stands in for transformers' image encoder: returns its pixels, which are patches already."""

    def forward(self, pixel_values: Tensor, **_: object) -> tuple[Tensor]:
        return (pixel_values,)


def transformers_match(
    theirs: Blip2ForImageTextRetrieval, model: RetrievalModel, text: str, patches_BPV: Tensor
) -> Tensor:
    """Compute the match logits (B, 2) float32 of one text and B photos with transformers, 64 photos at a time.

    The image encoder of `theirs` is replaced by one that returns the patches.
    """
    theirs.vision_model = _PatchesAsGiven()
    ids, mask, _ = model.tokenizer([text])
    logits = [
        theirs(
            pixel_values=patches,
            input_ids=ids.to(model.device).expand(len(patches), -1),
            attention_mask=mask.to(model.device).long().expand(len(patches), -1),
            use_image_text_matching_head=True,
        ).logits_per_image.float()
        for patches in patches_BPV.split(64)
    ]
    return torch.cat(logits)


def _attend(layer: Attention, hidden_BSD: Tensor, read_BND: Tensor, mask: Tensor | None) -> Tensor:
    """Apply BERT's attention with its output layer. read_BND: what keys and values are computed from."""

    def split_heads(rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], layer.num_heads, -1).permute(0, 2, 1, 3)

    query = split_heads(layer.query(hidden_BSD))
    key, value = split_heads(layer.key(read_BND)), split_heads(layer.value(read_BND))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + mask
    mixed = scores.softmax(dim=-1) @ value
    mixed = mixed.permute(0, 2, 1, 3).contiguous().view(*hidden_BSD.shape)
    return layer.norm(layer.out(mixed) + hidden_BSD)


def _feed_forward(layer: MLP, hidden_BSD: Tensor) -> Tensor:
    """Apply BERT's feed-forward block."""
    return layer.norm(layer.down(F.gelu(layer.up(hidden_BSD))) + hidden_BSD)
