"""Draw candidate captions of photos with a captioner, score them with a retrieval model, and select the best.

A photo's own captions and its label compete with the drawn captions, or stay beside them.

Shapes: B photos, N texts, Q queries, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """A caption that may be kept for a photo.

    synthetic: whether a captioner has drawn it; else it is the photo's own. score: how well it fits the photo, as
    search scores a candidate; higher is better, NaN before it is computed.
    """

    text: str
    synthetic: bool
    score: float = math.nan


def load_captioner_and_matcher(
    config: CapfiltConfig, runs: Path, device: str
) -> tuple[RetrievalModel | CaptionModel | None, RetrievalModel]:
    """Load the captioner and the matcher of a run, as a single model where both names mean the same.

    The captioner is None when no captions are drawn. Raise CheckpointError for a model that cannot be loaded and for a
    captioner that cannot write, DataError when captions may be longer than the captioner can write.
    """
    captioner_folder, matcher_folder = (
        _find_folder(name, runs) for name in (config.captioner, config.matcher)
    )
    matcher = load_model(matcher_folder, device=device)
    if not config.per_photo:
        return None, matcher
    if has_language(Path(captioner_folder)):
        return load_captioner(captioner_folder, device=device), matcher
    is_matcher = captioner_folder == matcher_folder
    captioner = matcher if is_matcher else load_model(captioner_folder, device=device)
    if not captioner.config.has_captions:
        raise CheckpointError(
            f"{config.captioner} cannot write captions: it has no ITG head (transformers' retrieval folders leave it "
            "out). The bundled mini has one, as has what `qseek train stage1` makes; any stage-2 model writes, too "
            "(`qseek train stage2`, blip2-opt-2.7b): set captioner to one of them."
        )
    max_positions = captioner.config.qformer.max_positions
    if config.max_tokens + 1 > max_positions:
        raise DataError(
            f"max_tokens is {config.max_tokens}; {config.captioner} writes at most {max_positions - 1} tokens."
        )
    return captioner, matcher


def _find_folder(name: str, runs: Path) -> str:
    """Return the folder of a model: that of a run in `runs`, or else of a model by name."""
    folder_of_run = runs / name / "model"
    return str((folder_of_run if folder_of_run.is_dir() else find_model(name)).resolve())


class CandidateRanker:
    """A captioner and a matcher that give the candidate captions of photos, ranked by score.

    min_side: side in pixels above which a large photo file may be scaled down while it is decoded.
    """

    def __init__(
        self,
        captioner: RetrievalModel | CaptionModel | None,
        matcher: RetrievalModel,
        config: CapfiltConfig,
        labeller: Labeller | None = None,
    ):
        """Keep the models. captioner: None to draw no captions. labeller: labels photos that have no label."""
        self.captioner, self.matcher, self.config, self.labeller = captioner, matcher, config, labeller
        # Search opens files with this side, too.
        self.min_side = 2 * max(model.image_size for model in (captioner, matcher) if model is not None)

    def rank_captions(
        self, samples: Sequence[CaptionedPicture], pictures: Sequence[Image.Image], seed: int
    ) -> list[list[CandidateCaption]]:
        """Return the candidate captions of each photo, best first.

        Captions that are equal but for case and spaces count once, as the photo's own if it has them; captions without
        a token do not count. samples, pictures: the photos and their decoded pixels. seed: decides what is drawn.
        """
        keys = self.matcher.compute_photo_keys(
            self.matcher.encode_patches(_squash_all(pictures, self.matcher))
        )
        drawn_texts = self._draw_texts(pictures, keys, seed)
        candidates = [
            self._merge_captions(originals, drawn)
            for originals, drawn in zip(self._list_originals(samples, pictures), drawn_texts, strict=True)
        ]
        return self._score_captions(keys, candidates)

    def _merge_captions(self, originals: Sequence[str], drawn: Sequence[str]) -> list[CandidateCaption]:
        """Return the captions of a photo without those that repeat an earlier one, the photo's own first."""
        captions = [CandidateCaption(text, False) for text in originals]
        captions += [CandidateCaption(text, True) for text in drawn]
        merged: dict[str, CandidateCaption] = {}
        for caption in captions:
            normal_text = " ".join(caption.text.casefold().split())
            if self.matcher.tokenizer.tokenizer.encode(normal_text, add_special_tokens=False).ids:
                merged.setdefault(normal_text, caption)
        return list(merged.values())

    def _list_originals(
        self, samples: Sequence[CaptionedPicture], pictures: Sequence[Image.Image]
    ) -> list[list[str]]:
        """Return the captions that each photo has, and those made of its label, or else of the teacher's label."""
        if self.config.originals == "none":
            return [[] for _ in samples]
        labels = [sample.label for sample in samples]
        if self.labeller is not None and not all(labels):
            teacher_labels = self.labeller.label_pictures(pictures)
            labels = [
                label or teacher_label for label, teacher_label in zip(labels, teacher_labels, strict=True)
            ]
        return [
            [*sample.captions, *label_captions(label, self.config.label_texts)]
            for sample, label in zip(samples, labels, strict=True)
        ]

    def _draw_texts(self, pictures: Sequence[Image.Image], keys: PhotoKeys, seed: int) -> list[list[str]]:
        """Draw `per_photo` captions of each photo. keys: of the matcher, which may be the captioner, too."""
        config, captioner = self.config, self.captioner
        if captioner is None:
            return [[] for _ in pictures]
        if isinstance(captioner, CaptionModel):
            options = GenerationOptions(
                max_new_tokens=config.max_tokens,
                min_new_tokens=config.min_tokens,
                top_p=config.top_p,
                temperature=config.temperature,
                seed=seed,
                num_samples=config.per_photo,
            )
            texts = captioner.generate(_squash_all(pictures, captioner), [config.prompt], options)
            return [
                texts[first : first + config.per_photo] for first in range(0, len(texts), config.per_photo)
            ]
        if captioner is not self.matcher:
            keys = captioner.compute_photo_keys(captioner.encode_patches(_squash_all(pictures, captioner)))
        return captioner.draw_captions(
            keys,
            config.per_photo,
            torch.Generator().manual_seed(seed),
            top_p=config.top_p,
            temperature=config.temperature,
            min_length=config.min_tokens + 1,
            max_length=config.max_tokens + 1,
        )

    def _score_captions(
        self, keys: PhotoKeys, candidates: Sequence[Sequence[CandidateCaption]]
    ) -> list[list[CandidateCaption]]:
        """Return the captions of each photo with their scores, best first.

        The score is the one by which search orders candidates: the weighted match logit plus the ITC cosine, or the
        cosine alone for a matcher whose ITM head is not trained. keys: of the photos.
        """
        texts = [caption.text for captions in candidates for caption in captions]
        if not texts:
            return [[] for _ in candidates]
        model = self.matcher
        vectors_NE, _ = model.encode_texts(texts)
        photos_BQE = model.compute_photo_vectors(keys)
        text_start = model.start_texts(texts) if model.config.match_ready else None
        ranked, first = [], 0
        for number, captions in enumerate(candidates):
            rows = slice(first, first + len(captions))
            first = rows.stop
            scores = (vectors_NE[rows] @ photos_BQE[number].T).max(axis=1)
            if text_start is not None and captions:
                photo_keys = [(k[number : number + 1], v[number : number + 1]) for k, v in keys]
                match_logits = model.match(photo_keys, text_start[rows])[:, 1]
                scores = scores + model.config.match_weight * match_logits
            scored = [
                replace(caption, score=float(score)) for caption, score in zip(captions, scores, strict=True)
            ]
            ranked.append(sorted(scored, key=lambda caption: -caption.score))
        return ranked


def select_captions(captions: Sequence[CandidateCaption], config: CapfiltConfig) -> list[CandidateCaption]:
    """Select the captions of a photo that stay, in the order of `captions`, which is best first.

    With originals="kept" all of the photo's own captions come first, then the best drawn ones.
    """
    above_threshold = [
        caption for caption in captions if config.least is None or caption.score >= config.least
    ]
    if config.originals != "kept":
        return above_threshold[: config.keep]
    originals = [caption for caption in captions if not caption.synthetic]
    return originals + [caption for caption in above_threshold if caption.synthetic][: config.keep]


def _squash_all(pictures: Sequence[Image.Image], model: RetrievalModel | CaptionModel) -> np.ndarray:
    """Return the pictures as squares of the model's size, uint8 (B, H, W, 3)."""
    return np.stack([squash(picture, model.image_size) for picture in pictures])
