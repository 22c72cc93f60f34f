"""Train the last parts of a convolutional encoder with ITC, before stage 1 makes its patches.

These parts read feature maps that the parts before them made once (`encoded_views.encode_maps`), so that a step costs a
fraction of one through the whole encoder. This mends a distilled encoder, whose errors add up towards its end.

Shapes: B pictures, P patches, V vision width, C channels, H W positions of a feature map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from engine.blip2.vision import VisionEncoder, list_network_parts


class EncoderEnd:
    """The parts of an encoder from number `first` on, put into training mode and ready to learn."""

    def __init__(self, vision: VisionEncoder, first: int):
        self.vision, self.first = vision, first
        last_parts = nn.ModuleList(modules for modules, _ in list_network_parts(vision)[first:])
        last_parts.requires_grad_(True).train()
        self.weight = next(last_parts.parameters())
        self.slow_convs = [
            module for module in last_parts.modules() if isinstance(module, nn.Conv2d) and _is_slow(module)
        ]

    def read(self, maps_BHWC: Tensor) -> Tensor:
        """Return the patches (B, P, V) of feature maps (B, H, W, C), which the first of these parts reads.

        Call this method under `run_dtype.fast_autocast`.
        """
        features = maps_BHWC.permute(0, 3, 1, 2)
        if not torch.is_autocast_enabled(features.device.type):
            # The maps are stored in bfloat16.
            features = features.to(self.weight.dtype)
        with _compute_in_float32(self.slow_convs):
            return self.vision.read_parts(features, self.first)


def _is_slow(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is faster in float32: one on a CPU that is strided and depthwise.

    Its backward pass takes 7 to 16 times as long in bfloat16.
    """
    return conv.groups > 1 and conv.stride != (1, 1) and conv.weight.device.type == "cpu"


@contextmanager
def _compute_in_float32(convs: Sequence[nn.Conv2d]) -> Iterator[None]:
    """Let some convolutions compute in float32 although autocast is on."""

    def convolve_in_float32(conv: nn.Conv2d, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return type(conv).forward(conv, features.float())

    for conv in convs:
        conv.forward = partial(convolve_in_float32, conv)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for conv in convs:
            del conv.forward
