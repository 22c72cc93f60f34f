"""Define the retrieval model: frozen encoder, Q-Former, and the ITC, ITM and ITG heads (BLIP-2, section 3.2).

Shapes: B photos or pairs, P patches, V vision width, Q queries, T tokens, D Q-Former width, E embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.blip2.config import Blip2Config
from engine.blip2.layers import KeysValues, PatchNorm
from engine.blip2.qformer import PhotoKeys, QFormer, TextStart
from engine.blip2.vision import VisionEncoder


class CaptionHead(nn.Module):
    """The language-model head of BERT, for ITG. It shares the matrix of the word embedding and has a bias of its
    own.
    """

    def __init__(self, width: int, vocab_size: int, norm_eps: float):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden_BTD: Tensor, words: nn.Embedding) -> Tensor:
        """Return the logits (B, T, vocabulary) of the next word. words: the embedding that is shared."""
        return F.linear(self.norm(F.gelu(self.dense(hidden_BTD))), words.weight, self.bias)


class TextHead(nn.Linear):
    """ITC's projection of a text, and where `text_mlp_width` asks for it a hidden layer beside it.

    With a hidden layer the head can learn from sentence vectors that never change, so that texts are read once.
    """

    def __init__(self, config: Blip2Config):
        super().__init__(config.qformer.width, config.embed_dim)
        inner = config.text_mlp_width
        self.up = nn.Linear(config.qformer.width, inner) if inner else None
        self.down = nn.Linear(inner, config.embed_dim) if inner else None
        self.dropout = nn.Dropout(config.qformer.dropout)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Return (B, E), not yet of unit length."""
        projected_BE = super().forward(pooled_BD)
        if self.up is None or self.down is None:
            return projected_BE
        return projected_BE + self.down(self.dropout(F.gelu(self.up(pooled_BD))))


class Retriever(nn.Module):
    """The network that makes Q unit vectors of a photo and one of a text, and says whether photo and text match."""

    def __init__(self, config: Blip2Config):
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        vision_width, patch_width = config.vision.num_channels, config.qformer.patch_width
        self.vision_norm = PatchNorm(vision_width, patch_width, config.vision_norm_eps)
        self.qformer = QFormer(config.qformer, patch_width or vision_width)
        self.photo_head = nn.Linear(config.qformer.width, config.embed_dim)
        self.text_head = TextHead(config)
        self.match_head = nn.Linear(config.qformer.width, 2)
        former = config.qformer
        if config.has_captions:
            self.caption_head = CaptionHead(former.width, former.vocab_size, former.norm_eps)
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def encode_patches(self, pixels_B3HW: Tensor) -> Tensor:
        """Encode pixels as patches (B, P, V), after the trained `vision_norm` (LAVIS: ln_vision)."""
        return self.vision_norm(self.vision(pixels_B3HW))

    def compute_photo_keys(self, patches_BPV: Tensor) -> list[KeysValues]:
        """Compute the keys and values of photos; see `QFormer.compute_photo_keys`."""
        return self.qformer.compute_photo_keys(patches_BPV)

    def encode_photos(self, photo_keys: PhotoKeys) -> Tensor:
        """Return the ITC unit vectors (B, Q, E) float32 of photos."""
        return self.project_photos(self.qformer.read_photos(photo_keys)[0])

    def encode_texts(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the ITC unit vectors (B, E) float32 of texts."""
        return self.project_texts(self.pool_texts(ids_BT, mask_BT))

    def pool_texts(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return what ITC reads of texts (B, D): the hidden state of [CLS], or the mean over all tokens."""
        if self.config.text_pooling == "first":
            return self.qformer.read_texts(ids_BT, mask_BT, first_only=True)[:, 0]
        hidden_BTD = self.qformer.read_texts(ids_BT, mask_BT) * mask_BT.unsqueeze(2)
        return hidden_BTD.sum(dim=1) / mask_BT.sum(dim=1, keepdim=True)

    def project_texts(self, pooled_BD: Tensor) -> Tensor:
        """Project what `pool_texts` returned to unit vectors (B, E) float32."""
        return F.normalize(self.text_head(pooled_BD).float(), dim=-1)

    def project_photos(self, hidden_BQD: Tensor) -> Tensor:
        """Project the outputs of the queries to unit vectors (B, Q, E) float32."""
        return F.normalize(self.photo_head(hidden_BQD).float(), dim=-1)

    def match(
        self, photo_keys: PhotoKeys, ids_BT: Tensor, mask_BT: Tensor, query_numbers: Tensor | None = None
    ) -> Tensor:
        """Return the ITM logits (B, 2) float32 of pairs, averaged over the queries; class 1 means that they match.

        query_numbers: the numbers of the queries that take part, None for all.
        """
        return self.match_started_texts(photo_keys, self.qformer.start_texts(ids_BT, mask_BT, query_numbers))

    def match_started_texts(self, photos: PhotoKeys | Tensor, start: TextStart) -> Tensor:
        """Return the ITM logits (B, 2) float32 of photos with texts whose first layer is already computed.

        photos: keys or patches, see `QFormer.read_started_pairs`. start: of `QFormer.start_texts`.
        """
        hidden = self.qformer.read_started_pairs(photos, start, queries_only=True)
        return self.match_head(hidden).float().mean(dim=1)


def itc_scores(photos_BQE: Tensor, texts_ME: Tensor) -> Tensor:
    """Return the ITC scores (B, M) of B photos and M texts: the largest cosine over the queries (BLIP-2, section
    3.2).
    """
    batch, num_queries, _ = photos_BQE.shape
    cosines = photos_BQE.flatten(0, 1) @ texts_ME.T
    return cosines.view(batch, num_queries, -1).amax(dim=1)
