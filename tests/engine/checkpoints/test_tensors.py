"""Word embeddings are kept as int8 with a scale for each word, and are near what they were."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import tiny_net, tiny_tokenizer

from engine.checkpoints.building import load_net
from engine.checkpoints.layout import WEIGHTS
from engine.checkpoints.saving import save_checkpoint
from engine.checkpoints.tensors import (
    WORD_SCALES,
    WORDS,
    as_stored,
    pack_words,
    read_safetensors,
    unpack_words,
)


def test_a_value_moves_by_half_a_scale_at_most() -> None:
    words = (
        torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2, 50)[:, None]
    )
    words[7] = 0
    packed = pack_words({WORDS: words, "other": torch.ones(3)})
    assert packed[WORDS].dtype == torch.int8 and packed[WORDS].abs().max() == 127
    unpacked = unpack_words({name: as_stored(tensor) for name, tensor in packed.items()})
    assert unpacked.keys() == {WORDS, "other"} and unpacked[WORDS].shape == (50, 16)
    difference = (unpacked[WORDS].read() - words).abs()
    assert bool((difference <= packed[WORD_SCALES][:, None] * 0.501).all()) and difference.max() > 0
    assert torch.equal(unpacked[WORDS].read()[7], torch.zeros(16))


def test_a_folder_with_int8_words_loads_as_any_other(tmp_path: Path) -> None:
    net = tiny_net()
    save_checkpoint(tmp_path / "model", net, tiny_tokenizer(), int8_words=True)
    stored = read_safetensors(tmp_path / "model" / WEIGHTS)
    assert stored[WORDS].read().dtype == torch.int8 and WORD_SCALES in stored
    loaded, want = load_net(tmp_path / "model")[0].state_dict(), net.state_dict()
    assert loaded.keys() == want.keys()
    for name in want.keys() - {WORDS}:
        assert torch.equal(loaded[name], want[name])
    torch.testing.assert_close(loaded[WORDS], want[WORDS], atol=float(want[WORDS].abs().max()) / 250, rtol=0)
    assert not torch.equal(loaded[WORDS], want[WORDS])
