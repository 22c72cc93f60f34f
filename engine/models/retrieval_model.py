"""Encode, match and caption with a loaded retrieval model: pictures and texts go in, vectors and match logits come out.

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

PHOTO_BATCH = 64
CPU_PHOTO_BATCH = 16  # On a CPU the rows of a convolution then stay in its cache: 1.6 times as fast as 64.
TEXT_BATCH = 256
PAIR_BATCH = (64, 512)  # on a CPU, on a GPU
BEAM_BATCH = 320
BEHIND = 1000.0
"""Number that is subtracted from the ITC score of a candidate that ITM has not read.

The candidate then ranks behind all that ITM has read, and the order by ITC stays (LAVIS gives such candidates -100).
"""


class RetrievalModel(LoadedModel[Retriever]):
    """A loaded retrieval checkpoint; see `LoadedModel`."""

    def __init__(
        self, net: Retriever, tokenizer: TextTokenizer, *, name: str, digest: str, folder: Path,
        device: torch.device, dtype: torch.dtype,
    ):  # fmt: skip
        super().__init__(net, name=name, digest=digest, folder=folder, device=device, dtype=dtype)
        self.net = self.net.to(memory_format=torch.channels_last)
        self.tokenizer = tokenizer
        self.num_patches = self.net.vision.count_patches()

    @property
    def config(self) -> Blip2Config:
        return self.net.config

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Return (P, V), the shape of one photo's patches."""
        return self.num_patches, self.config.qformer.patch_width or self.config.vision.num_channels

    @property
    def vision_at_once(self) -> int:
        """Return the number of pictures in one pass of the image encoder."""
        return CPU_PHOTO_BATCH if self.device.type == "cpu" else PHOTO_BATCH

    @property
    def preprocessing(self) -> str:
        """Return in words how a picture is prepared for the encoder; an index keeps this text and compares it."""
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
        """Return the ITC unit vectors (B, Q, E) float32 of photos, from their patches."""
        return self.compute_photo_vectors(self.compute_photo_keys(patches_BPV))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        """Return the ITC unit vectors (B, E) float32 of texts, and how many tokens of each text were cut off.

        Raises QueryError for an empty text.
        """
        vectors = np.empty((len(texts), self.config.embed_dim), np.float32)
        cut = [0] * len(texts)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # A batch then has little padding.
        for start in range(0, len(texts), TEXT_BATCH):
            rows = by_length[start : start + TEXT_BATCH]
            ids, mask, num_cut = self.tokenizer([texts[i] for i in rows])
            vectors[rows] = self.net.encode_texts(ids.to(self.device), mask.to(self.device)).cpu().numpy()
            for row, count in zip(rows, num_cut, strict=True):
                cut[row] = count
        return vectors, cut

    def unpack_patches(self, rows: Sequence[bytes], features: str) -> Tensor:
        """Return the patches (B, P, V) that `PhotoEncoder` packed, on the device. features: how it packed them."""
        return unpack(rows, self.patch_shape, features, self.device, self.dtype)

    @torch.inference_mode()
    def compute_photo_keys(self, patches_BPV: Tensor) -> PhotoKeys:
        """Compute the cross-attention keys and values of photos; see `QFormer.compute_photo_keys`."""
        return self.net.compute_photo_keys(patches_BPV)

    @property
    def folding_pays(self) -> bool:
        """Return whether matching photos with one text is faster by their patches than by their keys."""
        return self.net.qformer.folding_pays(self.num_patches)

    @torch.inference_mode()
    def compute_photo_vectors(self, photo_keys: PhotoKeys) -> np.ndarray:
        """Return the ITC unit vectors (B, Q, E) float32 of photos, from the keys of `compute_photo_keys`."""
        return self.net.encode_photos(photo_keys).cpu().numpy()

    def draw_captions(
        self, photo_keys: PhotoKeys, num_samples: int, generator: torch.Generator, *, top_p: float = 0.9,
        temperature: float = 1.0, min_length: int = 1, max_length: int = 30,
    ) -> list[list[str]]:  # fmt: skip
        """Draw `num_samples` captions of each photo with the ITG head.

        Parameters and errors: see `itg_decoding.sample_captions`.
        """
        words = self.tokenizer
        ids_BST = sample_captions(
            self.net, photo_keys, generator, dec_id=words.dec_id, sep_id=words.sep_id, pad_id=words.pad_id,
            num_samples=num_samples, top_p=top_p, temperature=temperature, min_length=min_length,
            max_length=max_length,
        )  # fmt: skip
        return [[words.decode(ids) for ids in photo] for photo in ids_BST.tolist()]

    @torch.inference_mode()
    def start_texts(self, texts: Sequence[str]) -> TextStart:
        """Compute the part of matching that depends on the texts alone; see `QFormer.start_texts`."""
        ids, mask, _ = self.tokenizer(texts)
        ids, mask = ids.to(self.device), mask.to(self.device)
        parts = [
            self.net.qformer.start_texts(ids[start : start + TEXT_BATCH], mask[start : start + TEXT_BATCH])
            for start in range(0, len(ids), TEXT_BATCH)
        ]
        return TextStart.join(parts)

    @torch.inference_mode()
    def match(self, photos: PhotoKeys | Tensor, texts: Sequence[str] | TextStart) -> np.ndarray:
        """Return the match logits (N, 2) float32, [no match, match], of N photos with N texts, or of one of either with
        all.

        photos: the keys of photos, or their patches (B, P, V) where nothing else reads these photos; patches are
        cheaper where `folding_pays`.
        """
        start = texts if isinstance(texts, TextStart) else self.start_texts(texts)
        num_photos, num_texts = len(photos if isinstance(photos, Tensor) else photos[0][0]), len(start)
        logits = np.empty((max(num_photos, num_texts), 2), np.float32)
        at_once = PAIR_BATCH[self.device.type != "cpu"]
        if isinstance(photos, Tensor):
            at_once = self.vision_at_once
        for first in range(0, len(logits), at_once):
            part = slice(first, first + at_once)
            texts_part = start if num_texts == 1 else start[part]
            logits[part] = self.net.match_started_texts(_take_photos(photos, part), texts_part).cpu().numpy()
        return logits

    @torch.inference_mode()
    def write_best_captions(
        self, photos: PhotoKeys, *, num_beams: int = 5, min_length: int = 8, max_length: int = 30
    ) -> list[str]:
        """Write a caption of each photo with the ITG head by beam search.

        photos: the keys of `compute_photo_keys`. Parameters and errors: see `itg_decoding.search_captions`.
        """
        words, texts = self.tokenizer, []
        at_once = max(1, BEAM_BATCH // max(1, num_beams))
        for first in range(0, len(photos[0][0]), at_once):
            ids_BT = search_captions(
                self.net, [(k[first : first + at_once], v[first : first + at_once]) for k, v in photos],
                dec_id=words.dec_id, sep_id=words.sep_id, pad_id=words.pad_id, num_beams=num_beams,
                min_length=min_length, max_length=max_length,
            )  # fmt: skip
            texts += [words.decode(ids) for ids in ids_BT.tolist()]
        return texts


def _take_photos(photos: PhotoKeys | Tensor, part: slice) -> PhotoKeys | Tensor:
    """Return a part of the photos; a single photo is returned for every part."""
    if isinstance(photos, Tensor):
        return photos if len(photos) == 1 else photos[part]
    return [(k, v) if len(k) == 1 else (k[part], v[part]) for k, v in photos]


def compute_scores(config: Blip2Config, logits_N2: np.ndarray, itc_N: np.ndarray) -> np.ndarray:
    """Return the scores (N,) of matched pairs from their ITM logits and cosines (ARCHITECTURE, decision 1)."""
    return config.match_weight * logits_N2[:, 1] + itc_N


def compute_match_probabilities(config: Blip2Config, logits_N2: np.ndarray, itc_N: np.ndarray) -> np.ndarray:
    """Return the probabilities (N,) that pairs match.

    They are the softmax of the ITM logits over [no match, match], or where the model is calibrated the logistic
    function of the score.
    """
    margins = logits_N2[:, 1] - logits_N2[:, 0]
    if config.match_calibration is not None:
        slope, offset = config.match_calibration
        margins = slope * compute_scores(config, logits_N2, itc_N) + offset
    return 1 / (1 + np.exp(-np.clip(margins, -80, 80)))
