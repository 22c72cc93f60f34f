"""What an index keeps of a photo for reranking: its patches, as float16 or as int8 with a scale for each patch.

Shapes: B photos, P patches, V vision width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_INT8 = 127
SCALE_BYTES = 4  # float32


def pack(patches_BPV: Tensor, kind: str) -> list[bytes]:
    """One row of bytes a photo. kind: "store" (float16) or "int8".

    int8: P scales (the patch's largest magnitude / 127), then P x V whole numbers of such steps.
    """
    if kind == "store":
        return [row.tobytes() for row in patches_BPV.to(torch.float16).cpu().numpy()]
    if kind != "int8":
        raise ValueError(f'patches are kept as "store" or "int8", not {kind!r}')
    patches = patches_BPV.float()
    scales_BP1 = patches.abs().amax(dim=2, keepdim=True) / LARGEST_INT8
    steps = (patches / scales_BP1.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
    rows = zip(scales_BP1.cpu().numpy(), steps.cpu().numpy(), strict=True)
    return [scales.tobytes() + whole.tobytes() for scales, whole in rows]


def unpack(
    rows: Sequence[bytes], shape: tuple[int, int], kind: str, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The inverse of `pack` -> patches (B, P, V) on the device. shape: (P, V)."""
    num_patches, width = shape
    joined = bytearray().join(rows)  # of a writable copy, as torch asks
    if kind == "store":
        patches = torch.frombuffer(joined, dtype=torch.float16)
        return patches.view(len(rows), num_patches, width).to(device, dtype)
    table = torch.frombuffer(joined, dtype=torch.int8).view(len(rows), -1)
    scales, steps = table.split([SCALE_BYTES * num_patches, num_patches * width], dim=1)
    scales_BP1 = scales.contiguous().view(torch.float32)[..., None].to(device)
    return (steps.view(len(rows), num_patches, width).to(device).float() * scales_BP1).to(dtype)
