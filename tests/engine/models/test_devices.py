"""The dtype "auto" stands for bfloat16 where the hardware is fast in it, and for float32 everywhere else."""

from __future__ import annotations

import contextlib

import pytest
import torch

from engine.models import devices
from engine.models.devices import DTYPES, choose_device, get_dtype_name, resolve_dtype


def test_a_named_dtype_is_taken_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "choose_fast_dtype", lambda device: pytest.fail("nobody asked for auto"))
    for device in ("cpu", "cuda", torch.device("cuda", 1)):
        assert resolve_dtype("float32", device) is torch.float32
        assert resolve_dtype("bfloat16", device) is torch.bfloat16
    assert [get_dtype_name(dtype) for dtype in DTYPES.values()] == list(DTYPES)


@pytest.mark.parametrize(
    ("capabilities", "is_intel", "expected"),
    [
        ({"avx512_bf16": True}, False, torch.bfloat16),
        ({"avx512_bf16": True}, True, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": True}, True, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, True, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, False, torch.float32),
        ({}, False, torch.float32),
    ],
)
def test_auto_on_a_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], is_intel: bool, expected: torch.dtype
) -> None:
    """Intel's processors are fast in bfloat16 only with AMX, others also with AVX-512."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(devices, "_is_intel", lambda: is_intel)
    assert resolve_dtype("auto", "cpu") is expected
    assert choose_device("cpu", "auto") == (torch.device("cpu"), expected)


def test_auto_asks_the_named_gpu_and_does_not_count_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The named GPU is asked whether it computes bfloat16: GPU 1 does, and GPU 0 only emulates it."""
    current = [0]

    @contextlib.contextmanager
    def on(device: torch.device):  # type: ignore[no-untyped-def]
        current.append(device.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or current[-1] == 1,
    )
    assert resolve_dtype("auto", "cuda:1") is torch.bfloat16
    assert resolve_dtype("auto", torch.device("cuda", 0)) is torch.float32


def test_auto_elsewhere_is_float32() -> None:
    assert resolve_dtype("auto", "mps") is torch.float32


@pytest.mark.parametrize("name", ["float16", "double", ""])
def test_an_unknown_dtype_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"dtype is '{name}'; it must be auto or one of bfloat16, float32"):
        resolve_dtype(name, "cpu")
