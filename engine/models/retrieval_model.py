"""The retrieval model as the rest of qseek uses it: pictures and sentences in, vectors and match logits out.

Shapes: B photos, N pairs, P patches, V vision width, Q queries, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.blip2.config import Blip2Config
from engine.blip2.itg_decoding import sample_captions, search_captions
from engine.blip2.qformer import PhotoKeys, TextStart
from engine.blip2.retriever import Retriever
from engine.blip2.wordpiece import TextTokenizer
from engine.models.loaded_model import LoadedModel
from engine.models.patch_bytes import unpack

PHOTOS_AT_ONCE = 64
VISION_AT_ONCE = 16  # on a CPU: a convolution's rows stay in its cache, 1.6 times as fast as 64
TEXTS_AT_ONCE = 256
PAIRS_AT_ONCE = (64, 512)  # on a CPU, on a GPU
BEAMS_AT_ONCE = 320
BEHIND = 1000.0
"""Taken off the ITC of what ITM has not read: it stays behind what ITM has read, in ITC's order (LAVIS gives -100)."""


class RetrievalModel(LoadedModel[Retriever]):
    """A loaded retrieval checkpoint; see `LoadedModel`."""

    def __init__(
        self, net: Retriever, tokenizer: TextTokenizer, *, name: str, digest: str, folder: Path,
        device: torch.device, dtype: torch.dtype,
    ):  # fmt: skip
        super().__init__(net, name=name, digest=digest, folder=folder, device=device, dtype=dtype)
        self.net = self.net.to(memory_format=torch.channels_last)
        self.tokenizer = tokenizer
        self.num_patches = self.net.vision.num_patches()

    @property
    def config(self) -> Blip2Config:
        return self.net.config

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(P, V)."""
        return self.num_patches, self.config.vision.num_channels

    @property
    def vision_at_once(self) -> int:
        """Pictures in one pass of the encoder."""
        return VISION_AT_ONCE if self.device.type == "cpu" else PHOTOS_AT_ONCE

    @property
    def preprocessing(self) -> str:
        """How a picture becomes what the encoder reads, in words: an index keeps it."""
        vision = self.config.vision
        return f"squash-bicubic-{vision.image_size} mean={vision.mean} std={vision.std}"

    @property
    def num_queries(self) -> int:
        return self.config.qformer.num_queries

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    @torch.inference_mode()
    def encode_photos(self, patches_BPV: Tensor) -> np.ndarray:
        """Patches -> unit vectors (B, Q, E) float32."""
        return self.photo_vectors(self.photo_keys(patches_BPV))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        """Texts -> unit vectors (B, E) float32, and how many tokens of each were cut off.

        Raises QueryError for an empty text.
        """
        vectors = np.empty((len(texts), self.config.embed_dim), np.float32)
        cut = [0] * len(texts)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in each batch
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            rows = by_length[start : start + TEXTS_AT_ONCE]
            ids, mask, lost = self.tokenizer([texts[i] for i in rows])
            vectors[rows] = self.net.encode_texts(ids.to(self.device), mask.to(self.device)).cpu().numpy()
            for row, count in zip(rows, lost, strict=True):
                cut[row] = count
        return vectors, cut

    def patches_from_bytes(self, rows: Sequence[bytes], features: str) -> Tensor:
        """What `PhotoEncoder` kept -> patches (B, P, V) on the device. features: how it kept them."""
        return unpack(rows, self.patch_shape, features, self.device, self.dtype)

    @torch.inference_mode()
    def photo_keys(self, patches_BPV: Tensor) -> PhotoKeys:
        """The cross-attention keys and values of photos; see `QFormer.photo_keys`."""
        return self.net.photo_keys(patches_BPV)

    @property
    def folding_pays(self) -> bool:
        """Whether photos that one text alone reads are matched faster by their patches than by their keys."""
        return self.net.qformer.folding_pays(self.num_patches)

    @torch.inference_mode()
    def photo_vectors(self, photo_keys: PhotoKeys) -> np.ndarray:
        """What `photo_keys` made -> unit vectors (B, Q, E) float32."""
        return self.net.encode_photos(photo_keys).cpu().numpy()

    def draw_captions(
        self, photo_keys: PhotoKeys, num_samples: int, generator: torch.Generator, *, top_p: float = 0.9,
        temperature: float = 1.0, min_length: int = 1, max_length: int = 30,
    ) -> list[list[str]]:  # fmt: skip
        """So many captions of each photo, drawn from the ITG head: see `sample_captions`, also for what is raised."""
        words = self.tokenizer
        ids_BST = sample_captions(
            self.net, photo_keys, generator, dec_id=words.dec_id, sep_id=words.sep_id, pad_id=words.pad_id,
            num_samples=num_samples, top_p=top_p, temperature=temperature, min_length=min_length,
            max_length=max_length,
        )  # fmt: skip
        return [[words.decode(ids) for ids in photo] for photo in ids_BST.tolist()]

    @torch.inference_mode()
    def start_texts(self, texts: Sequence[str]) -> TextStart:
        """What matching computes of texts before it sees a photo; see `QFormer.start_texts`."""
        ids, mask, _ = self.tokenizer(texts)
        ids, mask = ids.to(self.device), mask.to(self.device)
        parts = [
            self.net.qformer.start_texts(
                ids[start : start + TEXTS_AT_ONCE], mask[start : start + TEXTS_AT_ONCE]
            )
            for start in range(0, len(ids), TEXTS_AT_ONCE)
        ]
        return TextStart.joined(parts)

    @torch.inference_mode()
    def match(self, photos: PhotoKeys | Tensor, texts: Sequence[str] | TextStart) -> np.ndarray:
        """Match logits (N, 2) float32, [no match, match], of pairs, of one text and many photos, or the reverse.

        photos: their keys, or patches (B, P, V) that nothing else will read: cheaper where `folding_pays`.
        """
        start = texts if isinstance(texts, TextStart) else self.start_texts(texts)
        num_photos, num_texts = len(photos if isinstance(photos, Tensor) else photos[0][0]), len(start)
        logits = np.empty((max(num_photos, num_texts), 2), np.float32)
        at_once = PAIRS_AT_ONCE[self.device.type != "cpu"]
        if isinstance(photos, Tensor):
            at_once = self.vision_at_once
        for first in range(0, len(logits), at_once):
            part = slice(first, first + at_once)
            texts_part = start if num_texts == 1 else start[part]
            logits[part] = self.net.match_started(_rows(photos, part), texts_part).cpu().numpy()
        return logits

    @torch.inference_mode()
    def best_captions(
        self, photos: PhotoKeys, *, num_beams: int = 5, min_length: int = 8, max_length: int = 30
    ) -> list[str]:
        """A caption of each photo by the ITG head's beam search: see `search_captions`, also for what is raised.

        photos: what `photo_keys` made of them.
        """
        words, texts = self.tokenizer, []
        at_once = max(1, BEAMS_AT_ONCE // max(1, num_beams))
        for first in range(0, len(photos[0][0]), at_once):
            ids_BT = search_captions(
                self.net, [(k[first : first + at_once], v[first : first + at_once]) for k, v in photos],
                dec_id=words.dec_id, sep_id=words.sep_id, pad_id=words.pad_id, num_beams=num_beams,
                min_length=min_length, max_length=max_length,
            )  # fmt: skip
            texts += [words.decode(ids) for ids in ids_BT.tolist()]
        return texts


def _rows(photos: PhotoKeys | Tensor, part: slice) -> PhotoKeys | Tensor:
    """Some of the photos; a single one serves every part."""
    if isinstance(photos, Tensor):
        return photos if len(photos) == 1 else photos[part]
    return [(k, v) if len(k) == 1 else (k[part], v[part]) for k, v in photos]


def match_probability(logits_N2: np.ndarray) -> np.ndarray:
    """Softmax over [no match, match] -> probability of a match (N,)."""
    return 1 / (1 + np.exp(np.clip(logits_N2[:, 0] - logits_N2[:, 1], -80, 80)))
