"""Patches become bytes and come back within the precision of their kind."""

from __future__ import annotations

import pytest
import torch

from engine.index.manifest import Manifest
from engine.models.patch_bytes import pack, unpack

SHAPE = (5, 12)
CPU = torch.device("cpu")


def manifest(features: str) -> Manifest:
    return Manifest("m", "0", 8, "squash", 2, 4, SHAPE, features)


@pytest.fixture
def patches() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(3, *SHAPE) * torch.tensor([0.01, 1, 30, 2000, 0.5])[:, None]


@pytest.mark.parametrize("features", ["store", "int8"])
def test_what_is_kept_comes_back(patches: torch.Tensor, features: str) -> None:
    rows = pack(patches, features)
    assert [len(row) for row in rows] == [manifest(features).patch_bytes_per_photo] * 3
    actual = unpack(rows, SHAPE, features, CPU, torch.float32)
    step = patches.abs().amax(dim=2, keepdim=True) / (127 if features == "int8" else 1024)
    assert ((actual - patches).abs() <= 0.5001 * step).all()
    torch.testing.assert_close(unpack(rows[1:2], SHAPE, features, CPU, torch.float32), actual[1:2])


def test_an_empty_patch_stays_empty() -> None:
    actual = unpack(pack(torch.zeros(1, *SHAPE), "int8"), SHAPE, "int8", CPU, torch.bfloat16)
    assert actual.dtype == torch.bfloat16 and not actual.any()


def test_another_kind_is_refused(patches: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="'none'"):
        pack(patches, "none")
