"""Wrap any timm model as the frozen image encoder, which turns pixels into patches.

Shapes: B photos, P patches, V vision width, H W pixels or feature map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engine.blip2.config import VisionConfig
from engine.errors import CheckpointError


class VisionEncoder(nn.Module):
    """A timm backbone without its classifier, which turns pixels (B, 3, H, W) into patches (B, P, V).

    The tokens of a transformer are its patches; a convolutional feature map is read row by row. Raises CheckpointError
    when timm does not know the name, and when the width is not that of the config.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        try:
            self.backbone: Any = timm.create_model(
                config.timm_name, num_classes=0, global_pool="", **config.timm_args
            )
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"The image encoder {config.timm_name!r} cannot be made by timm {timm.__version__} with "
                f"{config.timm_args}: {error}"
            ) from error
        backbone: Any = self.backbone
        num_channels = backbone.num_features + self._count_earlier_channels()
        if num_channels != config.num_channels:
            raise CheckpointError(
                f"The image encoder {config.timm_name!r} gives {num_channels} channels, but config.json says "
                f"{config.num_channels}."
            )
        if not config.final_norm:
            # A ViT has its last norm in one of these two attributes; a convolutional model has neither.
            for name in ("norm", "fc_norm"):
                if hasattr(self.backbone, name):
                    setattr(self.backbone, name, nn.Identity())

    def _count_earlier_channels(self) -> int:
        """Return the number of channels of the feature map that `earlier_part` adds to the patches, 0 without one."""
        number = self.config.earlier_part
        if not number:
            return 0
        parts = list_network_parts(self) if hasattr(self.backbone, "conv_stem") else []
        if not 0 < number < len(parts) - 1:
            raise CheckpointError(
                f"earlier_part is {number}, but the image encoder {self.config.timm_name!r} has "
                f"{max(len(parts) - 2, 0)} parts between its stem and its head."
            )
        block: Any = parts[number][0][0]
        return (block.bn3 if hasattr(block, "bn3") else block.bn2).num_features

    @property
    def device(self) -> torch.device:
        """Return the device that the weights lie on."""
        return next(self.parameters()).device

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Encode normalised pixels as patches (B, P, V)."""
        if self.config.earlier_part:
            return self.read_parts(pixels_B3HW)
        features = self.backbone.forward_features(pixels_B3HW)
        if features.ndim == 4:
            if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
                return features.flatten(1, 2)
            return features.flatten(2).transpose(1, 2)
        num_prefix = getattr(self.backbone, "num_prefix_tokens", 0)
        if num_prefix and not self.config.class_token:
            features = features[:, num_prefix:]
        return features

    def read_parts(self, features: Tensor, first: int = 0) -> Tensor:
        """Compute the patches (B, P, V) from the feature map (B, C, H, W) that the parts before `first` gave.

        The map of `config.earlier_part` must come from part `first - 1` or a later one. first: 0 for pixels.
        """
        earlier, number = (features, self.config.earlier_part) if first else (None, self.config.earlier_part)
        for part_number, (_, part) in enumerate(list_network_parts(self)[first:], first):
            features = part(features)
            if part_number == number:
                earlier = features
        if number and earlier is not None:
            height, width = features.shape[2:]
            features = torch.cat([features, F.adaptive_avg_pool2d(earlier, (height, width))], dim=1)
        return features.flatten(2).transpose(1, 2)

    def count_patches(self) -> int:
        """Return P, the number of patches of a picture, by encoding a blank one."""
        size = self.config.image_size
        with torch.inference_mode():
            dtype = next(self.parameters()).dtype
            return self(torch.zeros(1, 3, size, size, device=self.device, dtype=dtype)).shape[1]


def has_batch_norms(module: nn.Module) -> bool:
    """Return whether a module holds a batch norm, which `fold_batch_norms` could fold."""
    return any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def fold_batch_norms(encoder: VisionEncoder) -> VisionEncoder:
    """Return a faster copy for inference whose batch norms are folded into the convolutions before them.

    A norm is folded where its module stands right behind a convolution. To be sure that this is also the order in which
    they run, a picture is encoded both ways: when the patches differ, the encoder itself is returned.
    """
    if not has_batch_norms(encoder):
        return encoder
    copied = copy.deepcopy(encoder).eval()
    num_folded = 0
    for module in list(copied.modules()):
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(
                    module, norm_name, getattr(norm, "act", nn.Identity())
                )  # timm's norms carry the activation
                num_folded += 1
    if not num_folded:
        return encoder
    size = encoder.config.image_size
    picture = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(encoder.device)
    was_training = encoder.training
    with torch.inference_mode():
        expected, actual = encoder.eval()(picture), copied(picture)
    encoder.train(was_training)
    tolerance = 1e-3 * float(expected.abs().max())
    is_same = expected.shape == actual.shape and torch.allclose(actual, expected, atol=tolerance, rtol=0)
    return copied if is_same else encoder


EncoderPart = Callable[[Tensor], Tensor]


def list_network_parts(encoder: VisionEncoder) -> list[tuple[nn.ModuleList, EncoderPart]]:
    """Return a backbone of timm's EfficientNet family as a chain of parts: stem, every block, head.

    Each part comes as its modules and the function that runs it.
    """
    net: Any = encoder.backbone
    parts: list[tuple[nn.ModuleList, EncoderPart]] = [
        (nn.ModuleList([net.conv_stem, net.bn1]), lambda x: net.bn1(net.conv_stem(x)))
    ]
    parts += [(nn.ModuleList([block]), block) for stage in net.blocks for block in stage]
    parts.append((nn.ModuleList([net.conv_head, net.bn2]), lambda x: net.bn2(net.conv_head(x))))
    return parts
