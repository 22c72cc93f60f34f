"""The Q-Former: queries + patches (+ text) -> hidden states (BLIP-2, section 3.1).

Four passes over one set of weights. What a pass does not need is not computed: the last layer's rows that
nobody reads, the patches' keys and values that are already there, the queries' keys and values in ITG.

Shapes: B pairs, Q queries, T tokens, P patches, D width, V vision width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.blip2 import masks
from engine.blip2.config import QFormerConfig
from engine.blip2.layers import Block, KeysValues

PhotoKeys = Sequence[KeysValues]
"""Cross-attention keys and values of the photos, one pair for each layer that reads patches."""


@dataclass(frozen=True)
class TextStart:
    """The part of an ITM pass that no photo changes: until the first cross-attention, queries and text meet alone.

    queries: (B, Q, D) after the first layer's self-attention. text: (B, T, D) after the whole first layer.
    mask: (B, T), True = a token.
    """

    queries: Tensor
    text: Tensor
    mask: Tensor

    @classmethod
    def joined(cls, parts: Sequence[TextStart]) -> TextStart:
        """Texts of the same padded length, after each other."""
        if len(parts) == 1:
            return parts[0]
        rows = [(part.queries, part.text, part.mask) for part in parts]
        return cls(*(torch.cat(column) for column in zip(*rows, strict=True)))

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, rows: Tensor | slice) -> TextStart:
        """Some of the texts, without the padding that none of them needs."""
        mask = self.mask[rows]
        longest = int(mask.sum(dim=1).max())
        return TextStart(self.queries[rows], self.text[rows, :longest], mask[:, :longest])


class QFormer(nn.Module):
    """Queries that read patches, and a text encoder and decoder that shares their self-attention."""

    def __init__(self, config: QFormerConfig, vision_width: int):
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.empty(config.num_queries, config.width))
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(config, vision_width, layer % config.cross_attention_every == 0)
            for layer in range(config.num_layers)
        )
        self.apply(_initialise)
        nn.init.normal_(self.queries, std=0.02)

    def drop_text(self) -> None:
        """Keep what reading photos alone takes: the Q-Former of stage 2 has no text branch."""
        del self.words, self.positions
        for layer in self.layers:
            del layer.text_mlp

    def compute_photo_keys(self, patches_BPV: Tensor) -> list[KeysValues]:
        """What the queries will read of each photo. Depends on the photo alone: compute once, use for every text."""
        return [
            layer.cross_attention.keys_values(patches_BPV)
            for layer in self.layers
            if layer.cross_attention is not None
        ]

    def read_photos(
        self, photo_keys: PhotoKeys, chosen: Tensor | None = None
    ) -> tuple[Tensor, list[KeysValues]]:
        """Queries alone (ITC, photo side) -> hidden (B, Q, D) and, for ITG, every layer's self-attention keys and
        values of the queries. chosen: numbers of the queries that take part; all of them when not given."""
        hidden = self._embed_queries(photo_keys[0][0].shape[0], chosen)
        cross = iter(photo_keys)
        past = []
        for layer in self.layers:
            own = layer.attention.keys_values(hidden)
            past.append(own)
            hidden = layer.attention(hidden, own, None)
            if layer.cross_attention is not None:
                hidden = layer.cross_attention(hidden, next(cross), None)
            hidden = layer.query_mlp(hidden)
        return hidden, past

    def read_texts(self, ids_BT: Tensor, text_mask_BT: Tensor, *, first_only: bool = False) -> Tensor:
        """Text alone (ITC, text side) -> hidden (B, T, D), or the first token's (B, 1, D) alone."""
        hidden = self._embed_texts(ids_BT)
        mask = masks.padding_mask(text_mask_BT)
        for number, layer in enumerate(self.layers):
            own = layer.attention.keys_values(hidden)
            if first_only and number == self.config.num_layers - 1:
                hidden = hidden[:, :1].contiguous()
            hidden = layer.text_mlp(layer.attention(hidden, own, mask))
        return hidden

    def read_pairs(
        self, photo_keys: PhotoKeys, ids_BT: Tensor, text_mask_BT: Tensor, *, queries_only: bool = False,
        chosen: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Photo and text together (ITM) -> hidden (B, Q+T, D), or the queries' (B, Q, D). chosen: as above."""
        start = self.start_texts(ids_BT, text_mask_BT, chosen)
        return self.read_started(photo_keys, start, queries_only=queries_only)

    def start_texts(self, ids_BT: Tensor, text_mask_BT: Tensor, chosen: Tensor | None = None) -> TextStart:
        """The part of `read_pairs` that depends on the texts alone: compute once, use for every photo."""
        first = self.layers[0]
        queries = self._embed_queries(ids_BT.shape[0], chosen)
        hidden = torch.cat([queries, self._embed_texts(ids_BT)], dim=1)
        mask = masks.bidirectional_mask(text_mask_BT, queries.shape[1])
        hidden = first.attention(hidden, first.attention.keys_values(hidden), mask)
        # Contiguous: a linear layer on a slice would copy its weights for every pair.
        read, text = (part.contiguous() for part in hidden.split([queries.shape[1], ids_BT.shape[1]], dim=1))
        return TextStart(read, first.text_mlp(text), text_mask_BT)

    def read_started(
        self, photos: PhotoKeys | Tensor, start: TextStart, *, queries_only: bool = False
    ) -> Tensor:
        """The rest of `read_pairs`. Photos or texts may be one, for all of the others.

        photos: their keys, or patches (B, P, V) that are read this once: see `folding_pays`.
        """
        num_queries = start.queries.shape[1]
        mask = masks.bidirectional_mask(start.mask, num_queries)
        cross = iter(() if isinstance(photos, Tensor) else photos)
        read, text = start.queries, start.text
        for number, layer in enumerate(self.layers):
            if number:
                hidden = torch.cat([read, text.expand(len(read), -1, -1)], dim=1)
                own = layer.attention.keys_values(hidden)
                if queries_only and number == self.config.num_layers - 1:
                    hidden = hidden[:, :num_queries].contiguous()
                hidden = layer.attention(hidden, own, mask)
                read, text = hidden[:, :num_queries].contiguous(), hidden[:, num_queries:].contiguous()
            if layer.cross_attention is not None and isinstance(photos, Tensor):
                read = layer.cross_attention.read_folded(read, photos)
            elif layer.cross_attention is not None:
                read = layer.cross_attention(read, next(cross), None)
            read = layer.query_mlp(read)
            if number and text.shape[1]:
                text = layer.text_mlp(text)
        return read if queries_only else torch.cat([read, text.expand(len(read), -1, -1)], dim=1)

    def folding_pays(self, num_patches: int) -> bool:
        """Whether reading patches themselves costs less than making their keys, for photos read by one text."""
        cross = self.layers[0].cross_attention
        return cross is not None and cross.folding_pays(self.config.num_queries, num_patches)

    def write_texts(self, past: Sequence[KeysValues], ids_BT: Tensor, text_mask_BT: Tensor) -> Tensor:
        """Text that sees the queries and its own past (ITG) -> hidden (B, T, D).

        past: what `read_photos` returned for the same photos.
        """
        mask = masks.causal_text_mask(text_mask_BT, past[0][0].shape[2])
        return self._write(self._embed_texts(ids_BT), past, mask)[0]

    def write_next(
        self, past: Sequence[KeysValues], ids_B: Tensor, position: int
    ) -> tuple[Tensor, list[KeysValues]]:
        """One more token of each text (ITG, generation) -> its hidden (B, 1, D), and the past with it.

        past: of the queries (`read_photos`) and of the tokens before. position: of this token, from 0.
        """
        return self._write(self._embed_texts(ids_B[:, None], position), past, None)

    def _write(
        self, hidden_BTD: Tensor, past: Sequence[KeysValues], mask: Tensor | None
    ) -> tuple[Tensor, list[KeysValues]]:
        longer = []
        for layer, (keys, values) in zip(self.layers, past, strict=True):
            own_keys, own_values = layer.attention.keys_values(hidden_BTD)
            seen = torch.cat([keys, own_keys], dim=2), torch.cat([values, own_values], dim=2)
            longer.append(seen)
            hidden_BTD = layer.text_mlp(layer.attention(hidden_BTD, seen, mask))
        return hidden_BTD, longer

    def _embed_queries(self, batch: int, chosen: Tensor | None) -> Tensor:
        queries = self.queries if chosen is None else self.queries[chosen]
        return self.dropout(self.norm(queries)).expand(batch, -1, -1).contiguous()

    def _embed_texts(self, ids_BT: Tensor, first: int = 0) -> Tensor:
        positions = torch.arange(first, first + ids_BT.shape[1], device=ids_BT.device)
        return self.dropout(self.norm(self.words(ids_BT) + self.positions(positions)))


def _initialise(module: nn.Module) -> None:
    """BERT's initialisation: normal with standard deviation 0.02, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
