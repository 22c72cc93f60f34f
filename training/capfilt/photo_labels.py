"""Turn class labels into captions, and label photos that have no label with an image classifier.

A captioner cannot name what it has never seen; a label can. Shapes: B photos, C classes, V vision width, H W pixels.
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
from training.batches.class_names import word_name
from training.stages.teacher import TEACHER, load_teacher

NAMES = "imagenet_labels.txt"
"""File in the teacher's folder with the name of a class in each line."""
SIDE = 224
"""Side in pixels of the pictures on which the classifier was trained."""


def label_captions(label: str, texts: Sequence[str]) -> list[str]:
    """Return captions made of a label: `texts` with {label} replaced by its name, or {a} by the name with an article.

    A label may have several names, separated by commas ("pizza, pizza pie"). Each name gives a caption of each text. An
    empty label gives none.
    """
    names = [name for name in (part.strip() for part in label.split(",")) if name]
    return [word_name(name, text) for name in names for text in texts]


def check_texts(texts: Sequence[str]) -> None:
    """Raise DataError for a text that holds neither {label} nor {a}, or anything else in braces."""
    for text in texts:
        try:
            captions = label_captions("x", [text])
        except (KeyError, IndexError, ValueError):
            captions = [text]
        if captions == [text]:
            raise DataError(
                f"label_texts has {text!r}; it needs {{label}} (the name) or {{a}} (a name after its article), and "
                "nothing else in braces."
            )


class Labeller:
    """An image classifier of C classes, the teacher of a distillation, that labels photos where it is sure.

    names: the names of the classes; class 0 is the background. min_probability: probability from which a label counts.
    digest: of the classifier's files.
    """

    def __init__(self, folder: Path, min_probability: float, device: str):
        """Load the classifier from the teacher's folder. Raise DataError when a file is missing or does not fit."""
        vision = replace(mini().vision, image_size=SIDE)
        self.encoder = load_teacher(vision, folder).to(device)
        self.min_probability = min_probability
        if not (folder / NAMES).is_file():
            raise DataError(f"No names of classes at {folder / NAMES}; the teacher's folder must hold them.")
        self.names = (folder / NAMES).read_text(encoding="utf-8").splitlines()
        self.digest = compute_digest([folder / TEACHER, folder / NAMES])
        with np.load(folder / TEACHER) as stored:
            # The classifier is the last convolution, "conv<number>.weight" and ".bias".
            number = max(int(name[4:].split(".")[0]) for name in stored)
            weight, bias = (torch.from_numpy(stored[f"conv{number}.{part}"]) for part in ("weight", "bias"))
        self.weight_CV, self.bias_C = weight.float().flatten(1).to(device), bias.float().to(device)
        if len(self.names) != len(self.bias_C):
            raise DataError(f"{folder / NAMES} has {len(self.names)} names for {len(self.bias_C)} classes.")

    @torch.inference_mode()
    def compute_probabilities(self, pixels_B3HW: Tensor) -> Tensor:
        """Return class probabilities (B, C), the mean of those of each photo and of its mirror image."""
        maps = [
            self.encoder.backbone.forward_features(pixels) for pixels in (pixels_B3HW, pixels_B3HW.flip(3))
        ]
        logits = [map_BVHW.mean((2, 3)) @ self.weight_CV.T + self.bias_C for map_BVHW in maps]
        return torch.stack([logits_BC.softmax(1) for logits_BC in logits]).mean(0)

    def label_pictures(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Return the likeliest label of each picture, "" where the classifier is not sure or sees background."""
        squashed = np.stack([squash(picture, SIDE) for picture in pictures])
        vision = self.encoder.config
        pixels = to_pixels(squashed, vision.mean, vision.std, self.encoder.device)
        likeliest = self.compute_probabilities(pixels).max(1)
        return [
            self.names[number] if number and probability >= self.min_probability else ""
            for probability, number in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        ]
