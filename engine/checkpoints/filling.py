"""Make networks without storage and fill them with tensors one by one, so that there are never two copies in memory.

Position embeddings are resized to the grid of patches of another picture size.

Shapes: N positions (one of the class token and n * n of patches), V vision width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from engine.blip2.config import VisionConfig
from engine.checkpoints.tensors import StoredTensor
from engine.errors import CheckpointError


@contextmanager
def without_storage() -> Iterator[None]:
    """Make every parameter that a module registers in the block one without storage, so that none is drawn in vain."""

    def to_meta(
        module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None
    ) -> torch.nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def check_fits(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, StoredTensor], path: Path
) -> None:
    """Raise CheckpointError that names tensors which are missing, unknown or of a wrong shape.

    shapes: the shape of each tensor that the network needs, by name. path: the folder or file of the tensors.
    """
    if problems := list_misfits(shapes, tensors):
        raise CheckpointError(f"The weights in {path} do not fit the config.json: {problems}.")


def list_misfits(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, StoredTensor]) -> str:
    """Return in words the first five tensors that do not fit, "" when all fit; see `check_fits`."""
    problems = [f"missing {name}" for name in sorted(shapes.keys() - tensors.keys())]
    problems += [f"unknown {name}" for name in sorted(tensors.keys() - shapes.keys())]
    problems += [
        f"{name} is {tensors[name].shape}, should be {shapes[name]}"
        for name in sorted(tensors.keys() & shapes.keys())
        if tensors[name].shape != shapes[name]
    ]
    return "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")


def put_tensors(module: torch.nn.Module, tensors: Mapping[str, StoredTensor], dtype: torch.dtype) -> None:
    """Fill an empty module with tensors that are read and cast one at a time.

    dtype: the type that floating-point tensors are cast to.
    """
    modules = dict(module.named_modules())
    for name, tensor in tensors.items():
        value = tensor.read()
        # The copy is aligned and does not keep the file open.
        value = value.to(dtype if value.is_floating_point() else value.dtype, copy=True)
        owner, _, last = name.rpartition(".")
        if last in modules[owner]._parameters:
            modules[owner]._parameters[last] = torch.nn.Parameter(value.contiguous())
        else:
            modules[owner]._buffers[last] = value


def compute_tensor_digest(tensors: Mapping[str, StoredTensor]) -> str:
    """Return the SHA-256 in hexadecimal of names, types and values; their order and their files do not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].read().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_memory(num_bytes: int, path: Path) -> None:
    """Raise CheckpointError when the free memory has no room for so many bytes of weights.

    Call it before anything is loaded. path: the folder or file of the weights.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return  # Only Linux says how much memory is free.
    if num_bytes > free:
        raise CheckpointError(
            f"{path} needs {num_bytes / 2**30:.1f} GiB of memory for its weights, and {free / 2**30:.1f} GiB are free. "
            "Close other programs, or use a smaller model (`qseek models` lists them)."
        )


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
