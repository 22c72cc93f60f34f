"""Position embeddings of an image encoder, resized to the grid of patches that other pixels give.

Shapes: N positions (the class token's and n * n patches'), V vision width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from engine.blip2.config import VisionConfig
from engine.checkpoints.tensors import StoredTensor
from engine.errors import CheckpointError


def resize_positions(positions_1NV: Tensor, side: int, *, align_corners: bool) -> Tensor:
    """Position embeddings of a square grid, bicubically resized to side x side; the class position stays.

    LAVIS uses align_corners=False for EVA ViT-g (eva_vit.py) and True for CLIP ViT-L (clip_vit.py).
    positions: (1, 1 + n*n, V) -> (1, 1 + side*side, V).
    """
    cls, grid = positions_1NV[:, :1], positions_1NV[:, 1:]
    old = round(grid.shape[1] ** 0.5)
    if old == side:
        return positions_1NV
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(
        grid, size=(side, side), mode="bicubic", align_corners=align_corners
    )
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def resized(positions: StoredTensor, side: int, *, align_corners: bool) -> StoredTensor:
    """`resize_positions` of a tensor that is not read yet."""

    def resize(tensor: Tensor) -> Tensor:
        return resize_positions(tensor.float(), side, align_corners=align_corners)

    return positions.changed(resize, (1, 1 + side * side, positions.shape[-1]))


POSITIONS = "vision.backbone.pos_embed"


def at_image_size(ours: dict[str, StoredTensor], vision: VisionConfig, image_size: int) -> VisionConfig:
    """The encoder's config at other pixels; its position embeddings in `ours` are interpolated, as LAVIS does.

    Raises CheckpointError for an encoder without a grid of positions, and for pixels that its patches do not fill.
    """
    if image_size == vision.image_size:
        return vision
    side = grid_side(ours[POSITIONS].shape[1]) if POSITIONS in ours else 0
    if not side:
        raise CheckpointError(
            f"The model reads pictures of {vision.image_size} pixels, not {image_size}, and its encoder has no "
            "positions to interpolate."
        )
    patch = vision.image_size // side
    if image_size < patch or image_size % patch:
        raise CheckpointError(f"{image_size} pixels are not a multiple of the encoder's patches of {patch}.")
    is_clip = "quickgelu" in vision.timm_name
    ours[POSITIONS] = resized(ours[POSITIONS], image_size // patch, align_corners=is_clip)
    return replace(vision, image_size=image_size, timm_args=vision.timm_args | {"img_size": image_size})


def grid_side(num_positions: int) -> int:
    """Patches along one side, by the number of positions with the class token's; 0 where they are no square."""
    side = round(max(0, num_positions - 1) ** 0.5)
    return side if 1 + side * side == num_positions else 0
