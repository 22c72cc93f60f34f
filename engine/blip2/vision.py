"""The frozen image encoder: pixels -> patches, from any timm model.

Shapes: B photos, P patches, V vision width, H W pixels or feature map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engine.blip2.config import VisionConfig
from engine.errors import CheckpointError


class VisionEncoder(nn.Module):
    """pixels (B, 3, H, W) -> patches (B, P, V): a timm backbone without its classifier.

    Tokens of a transformer stay as they are; a convolutional feature map is read row by row. Raises
    CheckpointError when timm does not know the name or the width is not the configured one.
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
                f"timm {timm.__version__} cannot make the image encoder {config.timm_name!r} with {config.timm_args}: "
                f"{error}"
            ) from error
        if self.backbone.num_features != config.num_channels:
            raise CheckpointError(
                f"The image encoder {config.timm_name!r} gives {self.backbone.num_features} channels, "
                f"config.json says {config.num_channels}."
            )
        if not config.final_norm:
            # ViTs keep their last norm in one of these two; convolutional models have neither.
            for name in ("norm", "fc_norm"):
                if hasattr(self.backbone, name):
                    setattr(self.backbone, name, nn.Identity())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        features = self.backbone.forward_features(pixels_B3HW)
        if features.ndim == 4:
            if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
                return features.flatten(1, 2)
            return features.flatten(2).transpose(1, 2)
        num_prefix = getattr(self.backbone, "num_prefix_tokens", 0)
        if num_prefix and not self.config.class_token:
            features = features[:, num_prefix:]
        return features

    def num_patches(self) -> int:
        """P, from one blank picture."""
        size = self.config.image_size
        with torch.inference_mode():
            dtype = next(self.parameters()).dtype
            return self(torch.zeros(1, 3, size, size, device=self.device, dtype=dtype)).shape[1]


def has_batch_norms(module: nn.Module) -> bool:
    """Whether there is something for `folded` to fold."""
    return any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def folded(encoder: VisionEncoder) -> VisionEncoder:
    """A copy for inference whose batch norms are folded into the convolutions before them: the same numbers, faster.

    A norm is folded where its module stands right behind a convolution. Whether that is also the order in which they
    run is decided by the numbers: when one picture comes out otherwise than before, the encoder itself is returned.
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
        want, got = encoder.eval()(picture), copied(picture)
    encoder.train(was_training)
    same = want.shape == got.shape and torch.allclose(got, want, atol=1e-3 * float(want.abs().max()), rtol=0)
    return copied if same else encoder


EncoderPart = Callable[[Tensor], Tensor]


def network_parts(encoder: VisionEncoder) -> list[tuple[nn.ModuleList, EncoderPart]]:
    """The backbone (timm's EfficientNet family) as a chain: stem, every block, head; with the modules of each."""
    net: Any = encoder.backbone
    parts: list[tuple[nn.ModuleList, EncoderPart]] = [
        (nn.ModuleList([net.conv_stem, net.bn1]), lambda x: net.bn1(net.conv_stem(x)))
    ]
    parts += [(nn.ModuleList([block]), block) for stage in net.blocks for block in stage]
    parts.append((nn.ModuleList([net.conv_head, net.bn2]), lambda x: net.bn2(net.conv_head(x))))
    return parts
