"""A loaded model has the digest of its files and the dtype that was asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from damaged_folders import PICTURES, change_config, change_weights, compute_folder_digest, load_on_cpu
from tiny import tiny_model

from engine.models.loading import load_model

pytestmark = pytest.mark.usefixtures("own_models")


def test_the_digest_follows_all_three_files(folder: Path) -> None:
    seen = {compute_folder_digest(folder)}
    change_weights(folder, lambda s: s["match_head.bias"].add_(1e-6))
    seen.add(compute_folder_digest(folder))
    change_config(folder, lambda c: c.update(max_tokens=11))
    seen.add(compute_folder_digest(folder))
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    seen.add(compute_folder_digest(folder))
    assert len(seen) == 4 and all(len(digest) == 32 for digest in seen)
    assert load_on_cpu(folder).digest == compute_folder_digest(folder)
    assert compute_folder_digest(
        Path(shutil.copytree(folder, folder.with_name("copy")))
    ) == compute_folder_digest(folder)


def test_an_unknown_dtype(folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'float16'; it must be auto or one of bfloat16, float32"):
        load_model(str(folder), device="cpu", dtype="float16")


def test_bfloat16_is_near(folder: Path) -> None:
    full, half = load_on_cpu(folder), tiny_model(folder.with_name("other"), dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and next(half.net.parameters()).dtype == torch.bfloat16
    actual, want = (model.encode_photos(model.encode_patches(PICTURES)) for model in (half, full))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(actual, axis=2), 1, atol=1e-5)
    assert (actual * want).sum(axis=2).min() > 0.99
