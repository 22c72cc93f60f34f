"""A saved model comes back to the bit, in half precision as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from damaged_folders import PICTURES, compute_folder_digest, load_on_cpu
from safetensors.torch import load_file
from tiny import SIDE, tiny_config, tiny_net, tiny_tokenizer

from engine.checkpoints.saving import save_checkpoint

pytestmark = pytest.mark.usefixtures("own_models")


def test_what_is_saved_comes_back_to_the_bit(folder: Path) -> None:
    net, loaded = tiny_net().requires_grad_(False), load_on_cpu(folder)
    want, actual = net.state_dict(), loaded.net.state_dict()
    assert want.keys() == actual.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in want.items())
    assert loaded.config == tiny_config() and loaded.patch_shape == (17, 32)
    assert loaded.dtype == torch.float32 and not loaded.net.training
    vectors, _ = loaded.encode_texts(["a red dog"])
    ids, mask, _ = loaded.tokenizer(["a red dog"])
    np.testing.assert_array_equal(vectors, net.encode_texts(ids, mask).numpy())
    other = folder.with_name("again")
    save_checkpoint(other, loaded.net, loaded.tokenizer.tokenizer)
    assert compute_folder_digest(other) == compute_folder_digest(folder)


def test_saved_in_half_precision(folder: Path, tmp_path: Path) -> None:
    net = tiny_net()
    save_checkpoint(tmp_path / "half", net, tiny_tokenizer(), dtype=torch.float16)
    sizes = [(model / "model.safetensors").stat().st_size for model in (tmp_path / "half", folder)]
    assert sizes[0] < 0.6 * sizes[1]
    half, full = load_on_cpu(tmp_path / "half"), load_on_cpu(folder)
    for name, tensor in net.state_dict().items():
        assert torch.equal(half.net.state_dict()[name], tensor.half().float()), name
    actual, want = (model.encode_photos(model.encode_patches(PICTURES)) for model in (half, full))
    np.testing.assert_allclose(actual, want, atol=2e-2)


def test_a_counter_keeps_its_kind_in_half_precision(tmp_path: Path) -> None:
    """The int64 counter of a batch norm is not cast: as float16 it would not come back."""
    from engine.blip2.config import VisionConfig

    config = tiny_config(VisionConfig("test_resnet", SIDE, 96, class_token=False))
    save_checkpoint(tmp_path / "half", tiny_net(config), tiny_tokenizer(), dtype=torch.float16)
    as_stored = load_file(tmp_path / "half" / "model.safetensors")
    counters = [tensor for name, tensor in as_stored.items() if name.endswith("num_batches_tracked")]
    assert counters and all(tensor.dtype == torch.int64 for tensor in counters)
    assert load_on_cpu(tmp_path / "half").patch_shape[1] == 96
