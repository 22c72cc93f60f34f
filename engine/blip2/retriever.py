"""The retrieval model: frozen encoder, Q-Former, and the ITC, ITM and ITG heads (BLIP-2, section 3.2).

Shapes: B photos or pairs, P patches, V vision width, Q queries, T tokens, D Q-Former width, E embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.blip2.config import Blip2Config
from engine.blip2.layers import KeysValues
from engine.blip2.qformer import PhotoKeys, QFormer, TextStart
from engine.blip2.vision import VisionEncoder


class CaptionHead(nn.Module):
    """BERT's language-model head; its output matrix is the word embedding (tied), its bias is its own."""

    def __init__(self, width: int, vocab_size: int, norm_eps: float):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden_BTD: Tensor, words: nn.Embedding) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(hidden_BTD))), words.weight, self.bias)


class Retriever(nn.Module):
    """Photos -> Q unit vectors each, texts -> one unit vector each, photo and text -> do they match?"""

    def __init__(self, config: Blip2Config):
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.vision_norm = nn.LayerNorm(config.vision.num_channels, eps=config.vision_norm_eps)
        self.qformer = QFormer(config.qformer, config.vision.num_channels)
        self.photo_head = nn.Linear(config.qformer.width, config.embed_dim)
        self.text_head = nn.Linear(config.qformer.width, config.embed_dim)
        self.match_head = nn.Linear(config.qformer.width, 2)
        former = config.qformer
        if config.has_captions:
            self.caption_head = CaptionHead(former.width, former.vocab_size, former.norm_eps)
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def encode_patches(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels -> patches (B, P, V) as the Q-Former reads them, after the trained `vision_norm` (ln_vision)."""
        return self.vision_norm(self.vision(pixels_B3HW))

    def compute_photo_keys(self, patches_BPV: Tensor) -> list[KeysValues]:
        """See `QFormer.compute_photo_keys`."""
        return self.qformer.compute_photo_keys(patches_BPV)

    def encode_photos(self, photo_keys: PhotoKeys) -> Tensor:
        """-> unit vectors (B, Q, E) in float32."""
        return self.project_photos(self.qformer.read_photos(photo_keys)[0])

    def encode_texts(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """-> unit vectors (B, E) in float32, read from the first token, [CLS]."""
        first = self.qformer.read_texts(ids_BT, mask_BT, first_only=True)[:, 0]
        return F.normalize(self.text_head(first).float(), dim=-1)

    def project_photos(self, hidden_BQD: Tensor) -> Tensor:
        """Query outputs -> unit vectors (B, Q, E) in float32."""
        return F.normalize(self.photo_head(hidden_BQD).float(), dim=-1)

    def match(
        self, photo_keys: PhotoKeys, ids_BT: Tensor, mask_BT: Tensor, chosen: Tensor | None = None
    ) -> Tensor:
        """Pairs -> logits (B, 2) in float32, averaged over the queries; class 1 = they match.

        chosen: numbers of the queries that take part, all when not given.
        """
        return self.match_started(photo_keys, self.qformer.start_texts(ids_BT, mask_BT, chosen))

    def match_started(self, photos: PhotoKeys | Tensor, start: TextStart) -> Tensor:
        """The same of texts begun before, and of photos' keys or patches: see `QFormer.read_started`."""
        hidden = self.qformer.read_started(photos, start, queries_only=True)
        return self.match_head(hidden).float().mean(dim=1)


def itc_scores(photos_BQE: Tensor, texts_ME: Tensor) -> Tensor:
    """ITC score of every photo and text: max over the queries of the cosine (BLIP-2, section 3.2) -> (B, M)."""
    batch, num_queries, _ = photos_BQE.shape
    cosines = photos_BQE.flatten(0, 1) @ texts_ME.T
    return cosines.view(batch, num_queries, -1).amax(dim=1)
