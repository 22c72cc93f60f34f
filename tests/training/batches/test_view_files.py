"""Encoded views are read from their file, which a stopped run completes and which other inputs do not share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from eight_pairs import stage1_config
from torch import Tensor

from engine.blip2.retriever import Retriever
from training.batches.encoded_views import encode_views
from training.batches.view_files import compute_views_digest, read_or_make

ROWS = torch.arange(7 * 6, dtype=torch.bfloat16).view(7, 2, 3)


def compute(first: int) -> Tensor:
    return ROWS[first : first + 2]


def test_a_stopped_file_goes_on_where_it_was(tmp_path: Path) -> None:
    path, calls = tmp_path / "views" / "a.bf16", []

    def stopping(first: int) -> Tensor:
        calls.append(first)
        if first == 4:
            raise KeyboardInterrupt
        return compute(first)

    with pytest.raises(KeyboardInterrupt):
        read_or_make(path, (2, 3), 7, stopping, 2)
    assert not path.exists() and [file.name for file in path.parent.iterdir()] == ["a.bf16.new"]

    def counting(first: int) -> Tensor:
        calls.append(first)
        return compute(first)

    assert torch.equal(read_or_make(path, (2, 3), 7, counting, 2), ROWS)
    assert calls == [0, 2, 4, 4, 6] and [file.name for file in path.parent.iterdir()] == ["a.bf16"]
    never = pytest.fail
    assert torch.equal(read_or_make(path, (2, 3), 7, lambda first: never("it is there"), 2), ROWS)


def test_a_row_that_was_cut_off_is_computed_again(tmp_path: Path) -> None:
    half = tmp_path / "a.bf16.new"
    half.write_bytes(ROWS[:3].contiguous().view(torch.uint8).numpy().tobytes()[:-1])
    assert torch.equal(read_or_make(tmp_path / "a.bf16", (2, 3), 7, compute, 2), ROWS)


def test_views_from_a_file_are_those_that_were_encoded(tmp_path: Path) -> None:
    config = replace(stage1_config(), views=3)
    torch.manual_seed(0)
    net = Retriever(config.model)
    pictures = np.random.default_rng(0).integers(0, 255, (53, 32, 32, 3), dtype=np.uint8)
    in_memory = encode_views(net, pictures, config)
    assert torch.equal(encode_views(net, pictures, config, tmp_path), in_memory)
    assert torch.equal(encode_views(net, pictures, config, tmp_path), in_memory)
    assert len(list(tmp_path.iterdir())) == 1
    encode_views(net, pictures, replace(config, smallest_crop=0.5), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_name_depends_on_weights_pixels_and_settings() -> None:
    layer, pictures = torch.nn.Linear(2, 2), np.zeros((3, 4, 4, 3), np.uint8)
    name = compute_views_digest(layer, pictures, 1)
    other_pictures = pictures.copy()
    other_pictures[2, 3, 3, 2] = 1
    assert name == compute_views_digest(layer, pictures.copy(), 1)
    assert name != compute_views_digest(layer, other_pictures, 1) != compute_views_digest(layer, pictures, 2)
    with torch.no_grad():
        layer.bias[1] += 1
    assert name != compute_views_digest(layer, pictures, 1)
