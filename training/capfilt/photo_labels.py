"""Captions made of class labels, and an image classifier that labels photos which have none.

A captioner cannot write of what it has never seen; a label names it. Shapes: B photos, C classes, V vision width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.blip2.config import mini
from engine.blip2.pixels import to_pixels
from engine.errors import DataError
from engine.models.hub import compute_digest
from engine.pictures.squares import squash
from training.stages.teacher import TEACHER, load_teacher

NAMES = "imagenet_labels.txt"
SIDE = 224
"""Pixels at which the classifier was trained."""


def label_captions(label: str, texts: Sequence[str]) -> list[str]:
    """`texts` with a label filled in: {label} is its name, {a} that after an article. Of the names that commas separate
    ("pizza, pizza pie") each makes all of them; an empty label makes none."""
    names = [name for name in (part.strip() for part in label.split(",")) if name]
    return [text.format(label=name, a=f"{_article(name)} {name}") for name in names for text in texts]


def _article(name: str) -> str:
    return "an" if name[0].lower() in "aeiou" else "a"


def check_texts(texts: Sequence[str]) -> None:
    """Raises DataError for a text without a place for the label, or with one of another name."""
    for text in texts:
        try:
            made = label_captions("x", [text])
        except (KeyError, IndexError, ValueError):
            made = [text]
        if made == [text]:
            raise DataError(
                f"label_texts has {text!r}; it needs {{label}} (the name) or {{a}} (a name after its article), and "
                "nothing else in braces."
            )


class Labeller:
    """The teacher of a distillation with its classifier: the first of C labels, where it is sure of it."""

    def __init__(self, folder: Path, least: float, device: str):
        """folder: the teacher's. least: probability from which a label counts. Raises DataError when a file is not
        there."""
        vision = replace(mini().vision, image_size=SIDE)
        self.encoder, self.least = load_teacher(vision, folder).to(device), least
        if not (folder / NAMES).is_file():
            raise DataError(f"No names of classes at {folder / NAMES}; the teacher's folder holds them.")
        self.names = (folder / NAMES).read_text(encoding="utf-8").splitlines()
        self.digest = compute_digest([folder / TEACHER, folder / NAMES])
        with np.load(folder / TEACHER) as stored:
            last = max(int(name[4:].split(".")[0]) for name in stored)
            weight, bias = (torch.from_numpy(stored[f"conv{last}.{part}"]) for part in ("weight", "bias"))
        self.weight_CV, self.bias_C = weight.float().flatten(1).to(device), bias.float().to(device)
        if len(self.names) != len(self.bias_C):
            raise DataError(f"{folder}: {len(self.names)} names for {len(self.bias_C)} classes.")

    @torch.inference_mode()
    def probabilities(self, pixels_B3HW: Tensor) -> Tensor:
        """-> (B, C), the mean of a photo's and of its mirror image's."""
        maps = [
            self.encoder.backbone.forward_features(pixels) for pixels in (pixels_B3HW, pixels_B3HW.flip(3))
        ]
        logits = [features.mean((2, 3)) @ self.weight_CV.T + self.bias_C for features in maps]
        return torch.stack([one.softmax(1) for one in logits]).mean(0)

    def labels(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Of each photo, empty where the classifier is not sure, or sees background (class 0)."""
        squashed = np.stack([squash(picture, SIDE) for picture in pictures])
        vision = self.encoder.config
        pixels = to_pixels(squashed, vision.mean, vision.std, self.encoder.device)
        best = self.probabilities(pixels).max(1)
        found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [self.names[number] if number and sure >= self.least else "" for sure, number in found]
