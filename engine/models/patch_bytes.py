"""Pack a photo's patches into the bytes that an index keeps for reranking, and unpack them.

They are kept as float16, or as int8 with a scale for each patch.

Shapes: B photos, P patches, V vision width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_INT8 = 127
SCALE_BYTES = 4  # A scale is a float32.


def pack(patches_BPV: Tensor, kind: str) -> list[bytes]:
    """Return the bytes of each photo's patches.

    kind: "store" keeps float16. "int8" keeps P float32 scales, each the largest magnitude of a patch divided by 127,
    and then P x V numbers of such steps. Raises ValueError for another kind.
    """
    if kind == "store":
        return [row.tobytes() for row in patches_BPV.to(torch.float16).cpu().numpy()]
    if kind != "int8":
        raise ValueError(f'kind is {kind!r}; patches are kept as "store" or "int8".')
    patches = patches_BPV.float()
    scales_BP1 = patches.abs().amax(dim=2, keepdim=True) / LARGEST_INT8
    steps = (patches / scales_BP1.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
    rows = zip(scales_BP1.cpu().numpy(), steps.cpu().numpy(), strict=True)
    return [scales.tobytes() + whole.tobytes() for scales, whole in rows]


def unpack(
    rows: Sequence[bytes], shape: tuple[int, int], kind: str, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return the patches (B, P, V) that `pack` packed, on a device. shape: (P, V)."""
    num_patches, width = shape
    joined = bytearray().join(rows)  # torch.frombuffer asks for memory that can be written to.
    if kind == "store":
        patches = torch.frombuffer(joined, dtype=torch.float16)
        return patches.view(len(rows), num_patches, width).to(device, dtype)
    table = torch.frombuffer(joined, dtype=torch.int8).view(len(rows), -1)
    scales, steps = table.split([SCALE_BYTES * num_patches, num_patches * width], dim=1)
    scales_BP1 = scales.contiguous().view(torch.float32)[..., None].to(device)
    return (steps.view(len(rows), num_patches, width).to(device).float() * scales_BP1).to(dtype)
