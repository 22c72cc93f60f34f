"""Define the attention function, the attention layer, the feed-forward layer and the block of the Q-Former.

Norms come last and GELU is exact, as in BERT, from which BLIP-2 starts. Shapes: B pairs, S rows that ask, N rows that
are asked, Q queries, T tokens, P patches, D width, V vision width, H heads, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.blip2.config import QFormerConfig

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one attention layer, each (B, H, N, d)."""


def attention(
    q_BHSd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v as (B, S, H*d). mask: broadcasts to (B, H, S, N), True = may attend."""
    if q_BHSd.requires_grad and q_BHSd.device.type == "cpu":
        return _plain_attention(q_BHSd, k_BHNd, v_BHNd, mask, dropout)
    mixed = F.scaled_dot_product_attention(q_BHSd, k_BHNd, v_BHNd, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


def _plain_attention(
    q_BHSd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Compute `attention` in single steps, whose backward pass is faster for short rows on a CPU than PyTorch's
    fused one.
    """
    scores = (q_BHSd * q_BHSd.shape[-1] ** -0.5) @ k_BHNd.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    mixed = F.dropout(scores.softmax(dim=-1), dropout) @ v_BHNd
    return mixed.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head attention with its output projection, residual connection and norm.

    source_width: width of the rows that keys and values are computed from.
    """

    def __init__(self, config: QFormerConfig, source_width: int):
        super().__init__()
        self.num_heads = config.num_heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(source_width, config.width)
        self.value = nn.Linear(source_width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def compute_keys_values(self, source_BND: Tensor) -> KeysValues:
        """Compute the keys and values of source rows. They depend on these rows alone, so that they can be kept."""
        return self._heads(self.key(source_BND)), self._heads(self.value(source_BND))

    def forward(self, hidden_BSD: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """Let rows attend to keys and values; return the rows (B, S, D).

        mask: True = may attend, None = everything. Rows or keys with a batch of 1 serve the whole batch of the other.
        """
        dropout = self.dropout.p if self.training else 0.0
        asked, num_sources = self.query(hidden_BSD), len(keys_values[0])
        if mask is None and num_sources == 1:
            # All rows ask one photo: one large product is faster than B small ones.
            asked = asked.flatten(0, 1)[None]
        q_BHSd = self._heads(asked).expand(max(len(asked), num_sources), -1, -1, -1)
        mixed = attention(q_BHSd, *keys_values, mask, dropout).view(-1, *hidden_BSD.shape[1:])
        return self.norm(hidden_BSD + self.dropout(self.out(mixed)))

    def read_folded(self, hidden_BSD: Tensor, source_BNV: Tensor) -> Tensor:
        """Attend to a source without a mask, as `forward` does, but without computing the source's keys and values.

        Since (W_q h) . (W_k x) = (W_k^T W_q h) . x, the projections are applied to the S rows that ask instead of the N
        rows of the source. The bias of the key adds the same number to all scores of a row and falls out of the
        softmax. hidden: its batch may be 1, for all sources.
        """
        heads = self.num_heads
        q_BHSd = self._heads(self.query(hidden_BSD)) * (hidden_BSD.shape[2] // heads) ** -0.5
        key_HdV, value_HdV = (layer.weight.unflatten(0, (heads, -1)) for layer in (self.key, self.value))
        # Head by head: a batched product would copy its operands into another order first.
        asked = torch.cat(
            [F.linear(q_BHSd[:, h], key_HdV[h].T) for h in range(heads)], dim=1
        )  # (B or 1, H*S, V)
        if len(asked) == 1:
            # The rows are the same for every source: one large product is faster.
            scores = F.linear(source_BNV, asked[0]).transpose(1, 2)
        else:
            scores = asked @ source_BNV.transpose(1, 2)
        read = (scores.softmax(dim=-1) @ source_BNV).unflatten(
            1, (heads, -1)
        )  # each head's mean of the source
        mixed = torch.cat([F.linear(read[:, h], value_HdV[h]) for h in range(heads)], dim=2) + self.value.bias
        return self.norm(hidden_BSD + self.out(mixed))

    def folding_pays(self, num_rows: int, num_source: int) -> bool:
        """Return whether `read_folded` takes fewer multiplications than `forward` for a source that is read once.

        num_rows: S. num_source: N. The keys and values that `forward` needs are counted.
        """
        width, source_width = self.key.weight.shape
        plain = num_source * width * (source_width + num_rows)
        folded = num_rows * source_width * (width + self.num_heads * num_source)
        return folded < plain

    def _heads(self, rows_BND: Tensor) -> Tensor:
        return rows_BND.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """The feed-forward layer with its residual connection and norm."""

    def __init__(self, config: QFormerConfig):
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        return self.norm(hidden_BSD + self.dropout(self.down(F.gelu(self.up(hidden_BSD)))))


class PatchNorm(nn.LayerNorm):
    """The trained norm of the patches (LAVIS: ln_vision), and where `patch_width` asks for it a projection behind it.

    A projection makes wide patches cheap: keys, values and the patches that an index keeps have its width.
    """

    def __init__(self, vision_width: int, patch_width: int, eps: float):
        super().__init__(vision_width, eps=eps)
        self.projection = nn.Linear(vision_width, patch_width) if patch_width else None

    def forward(self, patches_BPV: Tensor) -> Tensor:
        """Return patches (B, P, V), or (B, P, patch_width) where there is a projection."""
        normed = super().forward(patches_BPV)
        return normed if self.projection is None else self.projection(normed)


class Block(nn.Module):
    """One Q-Former layer: shared self-attention, cross-attention for the queries, and two feed-forwards.

    Source: BLIP-2, section 3.1 and figure 2. has_queries: whether the queries take part in this layer. reads_patches:
    whether they read the patches in it.
    """

    def __init__(self, config: QFormerConfig, vision_width: int, has_queries: bool, reads_patches: bool):
        super().__init__()
        self.attention = Attention(config, config.width)
        self.cross_attention = Attention(config, vision_width) if reads_patches else None
        if has_queries:
            self.query_mlp = MLP(config)
        self.text_mlp = MLP(config)

    def read_text(self, hidden_BTD: Tensor, mask: Tensor | None) -> Tensor:
        """Read tokens that see each other alone; return their hidden states (B, T, D)."""
        keys_values = self.attention.compute_keys_values(hidden_BTD)
        return self.text_mlp(self.attention(hidden_BTD, keys_values, mask))
