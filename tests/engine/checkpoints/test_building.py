"""A model that is saved and loaded is equal to the bit, and tensors that do not fit are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damaged_folders import DAMAGED_CONFIGS, DAMAGED_FILES, change_config, change_weights, load_on_cpu
from tiny import tiny_config, tiny_tokenizer

from engine.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("own_models")
WEIGHTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "missing": (lambda s: s.pop("text_head.bias"), r"missing text_head\.bias"),
    "extra": (lambda s: s.update({"vision.head.bias": torch.zeros(3)}), r"unknown vision\.head\.bias"),
    "misshapen": (
        lambda s: s.update({"match_head.weight": torch.zeros(3, 32)}),
        r"match_head\.weight is \(3, 32\), should be \(2, 32\)",
    ),
    "broadcastable": (
        lambda s: s.update({"match_head.bias": torch.zeros(1)}),
        r"match_head\.bias is \(1,\), should be \(2,\)",
    ),
    "renamed": (
        lambda s: s.update({"temp": s.pop("temperature")}),
        r"missing temperature; unknown temp",
    ),
    "many": (lambda s: s.clear() or s.update(x=torch.zeros(1)), r"and \d+ more"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_tensors_that_do_not_fit_are_named(folder: Path, case: str) -> None:
    change, message = WEIGHTS[case]
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_on_cpu(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("case", DAMAGED_FILES)
def test_files_that_are_damaged(folder: Path, case: str) -> None:
    damage, message = DAMAGED_FILES[case]
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_on_cpu(folder)
    assert str(folder) in str(caught.value) or "DEC" in case


@pytest.mark.parametrize("case", DAMAGED_CONFIGS)
def test_a_config_that_does_not_fit(folder: Path, case: str) -> None:
    change, message = DAMAGED_CONFIGS[case]
    change_config(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_on_cpu(folder)


def test_more_tokens_than_words(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tiny_config().qformer.vocab_size
    with pytest.raises(CheckpointError, match=f"has {size + 1} tokens, but config.json says {size}"):
        load_on_cpu(folder)
