"""Texts of a frozen text half are read once, and as in evaluation mode."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_config, tiny_net, tiny_tokenizer

from engine.blip2.wordpiece import TextTokenizer
from training.losses.pooled_texts import PooledTexts


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_vectors_are_those_of_single_passes_and_are_computed_once(
    pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(dropout=0.5)
    net = tiny_net(type(config)(**{**vars(config), "text_pooling": pooling}))
    tokenizer = TextTokenizer(tiny_tokenizer(), 12)
    texts = ["a red dog in the snow", "cat", "the blue house", "cat"]
    net.train()
    pooled = PooledTexts(net, tokenizer)
    actual = pooled.read(texts)
    assert net.training and not actual.requires_grad
    net.eval()
    for text, vector in zip(texts, actual, strict=True):
        ids, mask, _ = tokenizer([text])
        torch.testing.assert_close(vector, net.pool_texts(ids, mask)[0].detach(), atol=1e-5, rtol=0)
    monkeypatch.setattr(net, "pool_texts", lambda *_: pytest.fail("the texts were read before"))
    assert torch.equal(pooled.read(texts[::-1]), actual.flip(0))
