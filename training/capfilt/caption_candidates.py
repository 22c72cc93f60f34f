"""A photo's candidate captions: drawn by a captioner, scored beside its own by a retrieval model, the best kept.

Shapes: B photos, N texts, Q queries, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine.blip2.generation import GenerationOptions
from engine.blip2.qformer import PhotoKeys
from engine.checkpoints.captioner_reading import has_language
from engine.datasets.captioned_pictures import CaptionedPicture
from engine.errors import CheckpointError, DataError
from engine.models.caption_model import CaptionModel
from engine.models.catalogue import find_model
from engine.models.loading import load_captioner, load_model
from engine.models.retrieval_model import RetrievalModel
from engine.pictures.squares import squash
from training.capfilt.capfilt_config import CapfiltConfig
from training.capfilt.photo_labels import Labeller, label_captions


@dataclass(frozen=True)
class CandidateCaption:
    """synthetic: drawn by the captioner. score: how well it fits its photo, as search scores a candidate; higher is
    better."""

    text: str
    synthetic: bool
    score: float = math.nan


def load_captioner_and_matcher(
    config: CapfiltConfig, runs: Path, device: str
) -> tuple[RetrievalModel | CaptionModel | None, RetrievalModel]:
    """The captioner (None when nothing is drawn) and the matcher; one model where both are the same.

    Raises CheckpointError as loading does, and for a captioner that cannot write.
    """
    writes, matches = (_folder_of(name, runs) for name in (config.captioner, config.matcher))
    matcher = load_model(matches, device=device)
    if not config.per_photo:
        return None, matcher
    if has_language(Path(writes)):
        return load_captioner(writes, device=device), matcher
    captioner = matcher if writes == matches else load_model(writes, device=device)
    if not captioner.config.has_captions:
        raise CheckpointError(
            f"{config.captioner} cannot write captions: it has no ITG head (transformers' retrieval folders leave it "
            "out). The bundled mini has one, as has what `qseek train stage1` makes; any stage-2 model writes, too "
            "(`qseek train stage2`, blip2-opt-2.7b): set captioner to one of them."
        )
    most = captioner.config.qformer.max_positions
    if config.max_tokens + 1 > most:
        raise DataError(f"max_tokens is {config.max_tokens}; {config.captioner} writes at most {most - 1}.")
    return captioner, matcher


def _folder_of(name: str, runs: Path) -> str:
    started = runs / name / "model"
    return str((started if started.is_dir() else find_model(name)).resolve())


class CandidateRanker:
    """Photos in, captions with their scores out."""

    def __init__(
        self,
        captioner: RetrievalModel | CaptionModel | None,
        matcher: RetrievalModel,
        config: CapfiltConfig,
        labeller: Labeller | None = None,
    ):
        self.captioner, self.matcher, self.config, self.labeller = captioner, matcher, config, labeller
        sizes = [model.image_size for model in (captioner, matcher) if model is not None]
        self.least_side = 2 * max(
            sizes
        )  # as search opens files: larger ones may be scaled down while decoding

    def rank_captions(
        self, samples: Sequence[CaptionedPicture], pictures: Sequence[Image.Image], seed: int
    ) -> list[list[CandidateCaption]]:
        """Of each photo, best first; equal ones once, as the photo's own where it has them. seed: of this batch."""
        keys = self.matcher.compute_photo_keys(self.matcher.encode_patches(_squashed(pictures, self.matcher)))
        drawn = self._drawn(pictures, keys, seed)
        candidates = []
        for own, texts in zip(self._own(samples, pictures), drawn, strict=True):
            merged: dict[str, CandidateCaption] = {}
            for one in [
                *(CandidateCaption(text, False) for text in own),
                *(CandidateCaption(text, True) for text in texts),
            ]:
                name = " ".join(one.text.casefold().split())
                if self.matcher.tokenizer.tokenizer.encode(name, add_special_tokens=False).ids:
                    merged.setdefault(name, one)
            candidates.append(list(merged.values()))
        return self._scored(keys, candidates)

    def _own(self, samples: Sequence[CaptionedPicture], pictures: Sequence[Image.Image]) -> list[list[str]]:
        """A photo's captions, and what its label, or else the teacher's, says."""
        if self.config.originals == "none":
            return [[] for _ in samples]
        labels = [sample.label for sample in samples]
        if self.labeller is not None and not all(labels):
            labels = [own or found for own, found in zip(labels, self.labeller.labels(pictures), strict=True)]
        return [
            [*sample.captions, *label_captions(label, self.config.label_texts)]
            for sample, label in zip(samples, labels, strict=True)
        ]

    def _drawn(self, pictures: Sequence[Image.Image], keys: PhotoKeys, seed: int) -> list[list[str]]:
        config, captioner = self.config, self.captioner
        if captioner is None:
            return [[] for _ in pictures]
        if isinstance(captioner, CaptionModel):
            how = GenerationOptions(
                max_new_tokens=config.max_tokens,
                min_new_tokens=config.min_tokens,
                top_p=config.top_p,
                temperature=config.temperature,
                seed=seed,
                num_samples=config.per_photo,
            )
            texts = captioner.generate(_squashed(pictures, captioner), [config.prompt], how)
            return [texts[n : n + config.per_photo] for n in range(0, len(texts), config.per_photo)]
        if captioner is not self.matcher:
            keys = captioner.compute_photo_keys(captioner.encode_patches(_squashed(pictures, captioner)))
        return captioner.draw_captions(
            keys,
            config.per_photo,
            torch.Generator().manual_seed(seed),
            top_p=config.top_p,
            temperature=config.temperature,
            min_length=config.min_tokens + 1,
            max_length=config.max_tokens + 1,
        )

    def _scored(
        self, keys: PhotoKeys, candidates: Sequence[Sequence[CandidateCaption]]
    ) -> list[list[CandidateCaption]]:
        """As search scores them: the weighed match logit and the ITC cosine, or that alone; see `engine.search`."""
        texts = [one.text for captions in candidates for one in captions]
        if not texts:
            return [[] for _ in candidates]
        model = self.matcher
        vectors_NE, _ = model.encode_texts(texts)
        photos_BQE = model.compute_photo_vectors(keys)
        start = model.start_texts(texts) if model.config.match_ready else None
        scored, first = [], 0
        for number, captions in enumerate(candidates):
            rows = slice(first, first + len(captions))
            first = rows.stop
            scores = (vectors_NE[rows] @ photos_BQE[number].T).max(axis=1)
            if start is not None and captions:
                own = [(k[number : number + 1], v[number : number + 1]) for k, v in keys]
                scores = scores + model.config.match_weight * model.match(own, start[rows])[:, 1]
            found = [
                CandidateCaption(one.text, one.synthetic, float(score))
                for one, score in zip(captions, scores, strict=True)
            ]
            scored.append(sorted(found, key=lambda one: -one.score))
        return scored


def select_captions(captions: Sequence[CandidateCaption], config: CapfiltConfig) -> list[CandidateCaption]:
    """What stays of a photo's captions, best first; originals that are kept anyhow before the drawn ones."""
    good = [one for one in captions if config.least is None or one.score >= config.least]
    if config.originals != "kept":
        return good[: config.keep]
    own = [one for one in captions if not one.synthetic]
    return own + [one for one in good if one.synthetic][: config.keep]


def _squashed(pictures: Sequence[Image.Image], model: RetrievalModel | CaptionModel) -> np.ndarray:
    return np.stack([squash(picture, model.image_size) for picture in pictures])
