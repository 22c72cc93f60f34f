"""Hold photos without captions whose names a classifier knows, and give them out beside a batch of captioned ones.

Shapes: N pictures of a set, W views of each, B photos, P patches, V vision width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.blip2.config import VisionConfig
from engine.checkpoints.encoder_packages import BACKBONE, CLASSIFIER, read_packaged_encoder
from engine.errors import TrainingError


class Classifier:
    """The classifier of a packaged image encoder, which gives the probabilities of ImageNet's 1,000 classes."""

    def __init__(self, vision: VisionConfig):
        """Read the classifier. Raises TrainingError when the encoder comes without one, CheckpointError as the package
        does.
        """
        if not vision.package:
            raise TrainingError(
                f"The image encoder {vision.timm_name!r} comes from no package, so that there is no classifier that "
                "knows names. Set names to none."
            )
        tensors = read_packaged_encoder(vision.package, vision.package_digest, "The recipe")
        weight, bias = (tensors[f"{BACKBONE}{CLASSIFIER}{part}"].read() for part in ("weight", "bias"))
        self.weight_CV, self.bias_C = weight.float(), bias.float()

    def classify(self, patches_BPV: Tensor) -> Tensor:
        """Return class probabilities (B, C) float32 from all patches of photos, as the encoder gives them.

        The classifier reads the mean of the last map; channels of an earlier map, which come behind, are left out.
        """
        mean_BV = patches_BPV[:, :, : self.weight_CV.shape[1]].float().mean(dim=1)
        return F.linear(mean_BV, self.weight_CV.to(mean_BV.device), self.bias_C.to(mean_BV.device)).softmax(
            dim=1
        )


class NamedPictures:
    """Patches of photos from several sets, each of which has a share of what is drawn."""

    def __init__(self, sets: Sequence[Tensor], shares: Sequence[float]):
        """Take the patches (N, W, P, V) of each set, and its share in proportion to those of the others."""
        self.sets, self.shares = sets, torch.tensor(shares)

    def draw(self, count: int, draws: torch.Generator) -> list[tuple[int, int, int]]:
        """Draw photos -> the number of the set, of the photo in it, and of the view, for each."""
        set_numbers = torch.multinomial(self.shares, count, replacement=True, generator=draws).tolist()
        places = torch.rand(2, count, generator=draws).tolist()
        return [
            (number, int(photo * len(self.sets[number])), int(view * self.sets[number].shape[1]))
            for number, photo, view in zip(set_numbers, *places, strict=True)
        ]

    def read_patches(self, drawn: Sequence[tuple[int, int, int]]) -> Tensor:
        """Return the patches (B, P, V) of what `draw` returned, or of a part of it."""
        return torch.stack([self.sets[number][row, view] for number, row, view in drawn])
