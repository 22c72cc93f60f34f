"""The frozen image encoder: pixels -> patches, from any timm model.

Shapes: B photos, P patches, V vision width, H W pixels or feature map.
"""

from typing import Any

import timm
import torch
from torch import Tensor, nn

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
