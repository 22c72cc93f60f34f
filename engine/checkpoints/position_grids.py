"""Resize the position embeddings of an image encoder to the grid of patches of another picture size.

Shapes: N positions (one of the class token and n * n of patches), V vision width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from engine.blip2.config import VisionConfig
from engine.checkpoints.tensors import StoredTensor
from engine.errors import CheckpointError


def resize_positions(positions_1NV: Tensor, side: int, *, align_corners: bool) -> Tensor:
    """Resize position embeddings (1, 1 + n*n, V) of a square grid to (1, 1 + side*side, V), bicubically.

    The position of the class token stays as it is. LAVIS uses align_corners=False for EVA ViT-g (eva_vit.py) and True
    for CLIP ViT-L (clip_vit.py).
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


def resize_stored_positions(positions: StoredTensor, side: int, *, align_corners: bool) -> StoredTensor:
    """Return a StoredTensor of position embeddings that is resized when it is read; see `resize_positions`."""

    def resize(tensor: Tensor) -> Tensor:
        return resize_positions(tensor.float(), side, align_corners=align_corners)

    return positions.with_change(resize, (1, 1 + side * side, positions.shape[-1]))


POSITIONS = "vision.backbone.pos_embed"


def change_image_size(ours: dict[str, StoredTensor], vision: VisionConfig, image_size: int) -> VisionConfig:
    """Return an encoder's config for another picture size, and interpolate its position embeddings in `ours`.

    The interpolation is that of LAVIS. image_size: the side of the pictures, in pixels. Raises CheckpointError for an
    encoder without a square grid of positions, and for a side that is no multiple of the patches' side.
    """
    if image_size == vision.image_size:
        return vision
    side = compute_grid_side(ours[POSITIONS].shape[1]) if POSITIONS in ours else 0
    if not side:
        raise CheckpointError(
            f"The model reads pictures of {vision.image_size} pixels. It cannot read {image_size}, because its encoder "
            "has no positions to interpolate."
        )
    patch = vision.image_size // side
    if image_size < patch or image_size % patch:
        raise CheckpointError(f"{image_size} pixels are not a multiple of the encoder's patches of {patch}.")
    is_clip = "quickgelu" in vision.timm_name
    ours[POSITIONS] = resize_stored_positions(ours[POSITIONS], image_size // patch, align_corners=is_clip)
    return replace(vision, image_size=image_size, timm_args=vision.timm_args | {"img_size": image_size})


def compute_grid_side(num_positions: int) -> int:
    """Return the number of patches along one side, 0 where the patches are no square.

    num_positions: the number of patches, plus 1 for the class token.
    """
    side = round(max(0, num_positions - 1) ** 0.5)
    return side if 1 + side * side == num_positions else 0
