"""Define the Q-Former, which turns queries, patches and text into hidden states (BLIP-2, section 3.1).

There are four passes over one set of weights. A pass leaves out what it does not need: rows of the last layer that
nobody reads, keys and values of patches that are known already, and in ITG the keys and values of the queries.

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
    """The part of an ITM pass that depends on the texts alone: all before the first cross-attention.

    queries: (B, Q, D) after the self-attention of the layer in which they enter. text: (B, T, D) after the whole of
    that layer. mask: (B, T), True = a token.
    """

    queries: Tensor
    text: Tensor
    mask: Tensor

    @classmethod
    def join(cls, parts: Sequence[TextStart]) -> TextStart:
        """Concatenate the starts of texts that are padded to one length."""
        if len(parts) == 1:
            return parts[0]
        rows = [(part.queries, part.text, part.mask) for part in parts]
        return cls(*(torch.cat(column) for column in zip(*rows, strict=True)))

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, rows: Tensor | slice) -> TextStart:
        """Return the starts of some of the texts, without the padding that none of them needs."""
        mask = self.mask[rows]
        longest = int(mask.sum(dim=1).max())
        return TextStart(self.queries[rows], self.text[rows, :longest], mask[:, :longest])


class QFormer(nn.Module):
    """A Q-Former: queries that read patches, and a text encoder and decoder that shares their self-attention."""

    def __init__(self, config: QFormerConfig, vision_width: int):
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.empty(config.num_queries, config.width))
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            self._make_block(layer, vision_width) for layer in range(config.num_layers)
        )
        self.apply(_initialise)
        nn.init.normal_(self.queries, std=0.02)

    def _make_block(self, layer: int, vision_width: int) -> Block:
        queries_since = layer - self.config.first_query_layer
        has_queries = queries_since >= 0
        reads_patches = has_queries and queries_since % self.config.cross_attention_every == 0
        return Block(self.config, vision_width, has_queries, reads_patches)

    @property
    def text_layers(self) -> Sequence[Block]:
        """Return the layers that read text alone, which come before the queries enter."""
        return self.layers[: self.config.first_query_layer]

    @property
    def query_layers(self) -> Sequence[Block]:
        """Return the layers in which the queries take part."""
        return self.layers[self.config.first_query_layer :]

    def drop_text(self) -> None:
        """Remove the text branch, which the Q-Former of stage 2 does not have."""
        del self.words, self.positions
        for layer in self.layers:
            del layer.text_mlp

    def compute_photo_keys(self, patches_BPV: Tensor) -> list[KeysValues]:
        """Compute the cross-attention keys and values of photos for every layer that reads patches.

        They depend on the photo alone, so that they are computed once and used for every text.
        """
        return [
            layer.cross_attention.compute_keys_values(patches_BPV)
            for layer in self.layers
            if layer.cross_attention is not None
        ]

    def read_photos(
        self, photo_keys: PhotoKeys, query_numbers: Tensor | None = None
    ) -> tuple[Tensor, list[KeysValues]]:
        """Let the queries read photos (ITC, photo side); return hidden states (B, Q, D) and, for ITG, keys and values.

        The keys and values are those of the queries in the self-attention of every layer; layers without queries have
        empty ones. query_numbers: the numbers of the queries that take part, None for all.
        """
        hidden = self._embed_queries(photo_keys[0][0].shape[0], query_numbers)
        cross = iter(photo_keys)
        past = [layer.attention.compute_keys_values(hidden[:, :0]) for layer in self.text_layers]
        for layer in self.query_layers:
            keys_values = layer.attention.compute_keys_values(hidden)
            past.append(keys_values)
            hidden = layer.attention(hidden, keys_values, None)
            if layer.cross_attention is not None:
                hidden = layer.cross_attention(hidden, next(cross), None)
            hidden = layer.query_mlp(hidden)
        return hidden, past

    def read_texts(self, ids_BT: Tensor, text_mask_BT: Tensor, *, first_only: bool = False) -> Tensor:
        """Read texts alone (ITC, text side); return hidden states (B, T, D), or (B, 1, D) with `first_only`."""
        hidden = self._embed_texts(ids_BT)
        mask = masks.padding_mask(text_mask_BT)
        for layer in self.layers[:-1]:
            hidden = layer.read_text(hidden, mask)
        last = self.layers[-1]
        keys_values = last.attention.compute_keys_values(hidden)
        if first_only:
            hidden = hidden[:, :1].contiguous()
        return last.text_mlp(last.attention(hidden, keys_values, mask))

    def read_pairs(
        self, photo_keys: PhotoKeys, ids_BT: Tensor, text_mask_BT: Tensor, *, queries_only: bool = False,
        query_numbers: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Read photo and text together (ITM); return hidden states (B, Q+T, D), or (B, Q, D) with `queries_only`.

        query_numbers: the numbers of the queries that take part, None for all.
        """
        start = self.start_texts(ids_BT, text_mask_BT, query_numbers)
        return self.read_started_pairs(photo_keys, start, queries_only=queries_only)

    def start_texts(
        self, ids_BT: Tensor, text_mask_BT: Tensor, query_numbers: Tensor | None = None
    ) -> TextStart:
        """Compute the part of `read_pairs` that depends on the texts alone; it serves every photo."""
        first = self.query_layers[0]
        queries, text = self._embed_queries(ids_BT.shape[0], query_numbers), self._embed_texts(ids_BT)
        for layer in self.text_layers:
            text = layer.read_text(text, masks.padding_mask(text_mask_BT))
        hidden = torch.cat([queries, text], dim=1)
        mask = masks.bidirectional_mask(text_mask_BT, queries.shape[1])
        hidden = first.attention(hidden, first.attention.compute_keys_values(hidden), mask)
        # The parts are made contiguous, because a linear layer on a slice would copy its weights for every pair.
        sizes = [queries.shape[1], ids_BT.shape[1]]
        queries, text = (part.contiguous() for part in hidden.split(sizes, dim=1))
        return TextStart(queries, first.text_mlp(text), text_mask_BT)

    def read_started_pairs(
        self, photos: PhotoKeys | Tensor, start: TextStart, *, queries_only: bool = False
    ) -> Tensor:
        """Read photos together with texts that `start_texts` has started; the result is that of `read_pairs`.

        There may be one photo for all texts, or one text for all photos. photos: the keys of photos, or the patches
        (B, P, V) of photos that no other text reads; see `folding_pays`.
        """
        num_queries = start.queries.shape[1]
        mask = masks.bidirectional_mask(start.mask, num_queries)
        cross = iter(() if isinstance(photos, Tensor) else photos)
        queries, text = start.queries, start.text
        for number, layer in enumerate(self.query_layers):
            if number:
                hidden = torch.cat([queries, text.expand(len(queries), -1, -1)], dim=1)
                keys_values = layer.attention.compute_keys_values(hidden)
                if queries_only and layer is self.layers[-1]:
                    hidden = hidden[:, :num_queries].contiguous()
                hidden = layer.attention(hidden, keys_values, mask)
                queries, text = hidden[:, :num_queries].contiguous(), hidden[:, num_queries:].contiguous()
            if layer.cross_attention is not None and isinstance(photos, Tensor):
                queries = layer.cross_attention.read_folded(queries, photos)
            elif layer.cross_attention is not None:
                queries = layer.cross_attention(queries, next(cross), None)
            queries = layer.query_mlp(queries)
            if number and text.shape[1]:
                text = layer.text_mlp(text)
        return queries if queries_only else torch.cat([queries, text.expand(len(queries), -1, -1)], dim=1)

    def folding_pays(self, num_patches: int) -> bool:
        """Return whether photos that one text alone reads are read faster by their patches than by their keys."""
        cross = self.query_layers[0].cross_attention
        return cross is not None and cross.folding_pays(self.config.num_queries, num_patches)

    def write_texts(self, past: Sequence[KeysValues], ids_BT: Tensor, text_mask_BT: Tensor) -> Tensor:
        """Read texts that see the queries and the tokens before (ITG); return hidden states (B, T, D).

        past: the keys and values that `read_photos` returned for the same photos.
        """
        mask = masks.causal_text_mask(text_mask_BT, past[-1][0].shape[2])
        return self._write(self._embed_texts(ids_BT), past, mask)[0]

    def write_next(
        self, past: Sequence[KeysValues], ids_B: Tensor, position: int
    ) -> tuple[Tensor, list[KeysValues]]:
        """Read one more token of each text (ITG, generation); return its hidden state (B, 1, D) and the longer past.

        past: keys and values of the queries (`read_photos`) and of the tokens before. position: the place of this token
        in its text, from 0.
        """
        return self._write(self._embed_texts(ids_B[:, None], position), past, None)

    def _write(
        self, hidden_BTD: Tensor, past: Sequence[KeysValues], mask: Tensor | None
    ) -> tuple[Tensor, list[KeysValues]]:
        """Read tokens behind a past; return their hidden states and the past with these tokens."""
        longer_past = []
        for layer, (keys, values) in zip(self.layers, past, strict=True):
            new_keys, new_values = layer.attention.compute_keys_values(hidden_BTD)
            all_seen = torch.cat([keys, new_keys], dim=2), torch.cat([values, new_values], dim=2)
            longer_past.append(all_seen)
            # Layers without queries have fewer columns; the queries' columns come first.
            layer_mask = None if mask is None else mask[..., mask.shape[-1] - all_seen[0].shape[2] :]
            hidden_BTD = layer.text_mlp(layer.attention(hidden_BTD, all_seen, layer_mask))
        return hidden_BTD, longer_past

    def _embed_queries(self, batch: int, query_numbers: Tensor | None) -> Tensor:
        queries = self.queries if query_numbers is None else self.queries[query_numbers]
        return self.dropout(self.norm(queries)).expand(batch, -1, -1).contiguous()

    def _embed_texts(self, ids_BT: Tensor, first: int = 0) -> Tensor:
        positions = torch.arange(first, first + ids_BT.shape[1], device=ids_BT.device)
        return self.dropout(self.norm(self.words(ids_BT) + self.positions(positions)))


def _initialise(module: nn.Module) -> None:
    """Initialise a layer as BERT does: weights are normal with standard deviation 0.02, biases are zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
