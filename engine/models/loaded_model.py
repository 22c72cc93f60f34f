"""Hold a network on a device together with the checkpoint that it comes from; the base of both kinds of models.

Shapes: B photos, H W pixels, P patches, V vision width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.blip2.captioner import Captioner
from engine.blip2.pixels import make_pixel_batches
from engine.blip2.retriever import Retriever
from engine.blip2.vision import fold_batch_norms

Net = TypeVar("Net", Retriever, Captioner)


class LoadedModel(Generic[Net]):
    """A loaded checkpoint, frozen and ready for inference.

    name, digest, folder: which checkpoint it is. dtype: the type of weights and activations, bfloat16 or float32.
    """

    def __init__(
        self, net: Net, *, name: str, digest: str, folder: Path, device: torch.device, dtype: torch.dtype
    ):
        net.eval().requires_grad_(False)
        net.vision = fold_batch_norms(net.vision)
        self.net: Net = net.to(device=device, dtype=dtype)
        self.name, self.digest, self.folder = name, digest, folder
        self.device, self.dtype = device, dtype

    @property
    def image_size(self) -> int:
        """Return the side of the square that the image encoder reads, in pixels."""
        return self.net.config.vision.image_size

    @property
    def vision_at_once(self) -> int:
        """Return the number of pictures in one pass of the image encoder."""
        raise NotImplementedError

    @torch.inference_mode()
    def encode_patches(self, pictures_BHWC: np.ndarray) -> Tensor:
        """Encode uint8 pictures (B, H, W, 3) of `image_size` as patches (B, P, V) on the device."""
        vision = self.net.config.vision
        parts = make_pixel_batches(pictures_BHWC, vision, self.vision_at_once, self.device, self.dtype)
        return torch.cat([self.net.encode_patches(pixels) for pixels in parts])
