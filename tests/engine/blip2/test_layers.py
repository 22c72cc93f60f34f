"""All ways to compute attention agree: PyTorch's fused one, single steps for training on a CPU, folded projections."""

from __future__ import annotations

import pytest
import torch

from engine.blip2.config import QFormerConfig
from engine.blip2.layers import Attention, attention


@pytest.mark.parametrize("masked", [False, True])
def test_single_steps_equal_the_fused_attention(masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 8)
    mask = None
    if masked:
        mask = torch.rand(3, 1, 4, 6) < 0.5
        mask[..., 0] = True
    want = attention(q, k, v, mask)
    actual = attention(q.requires_grad_(), k, v, mask)
    torch.testing.assert_close(actual.detach(), want, atol=1e-6, rtol=1e-5)
    assert actual.requires_grad and want.shape == (3, 4, 16)


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 2, 4, 8, requires_grad=True)
    assert torch.equal(attention(q, q, q, None), attention(q, q, q, None))
    assert not torch.equal(attention(q, q, q, None, dropout=0.5), attention(q, q, q, None, dropout=0.5))


@pytest.mark.parametrize("batch", [1, 3])
def test_folded_projections_change_nothing(batch: int) -> None:
    torch.manual_seed(0)
    layer = Attention(QFormerConfig(width=16, num_heads=2, dropout=0.0), source_width=24).requires_grad_(
        False
    )
    layer.key.bias.normal_()
    layer.value.bias.normal_()
    hidden, source = torch.randn(batch, 4, 16), torch.randn(3, 6, 24)
    want = layer(hidden.expand(3, -1, -1), layer.compute_keys_values(source), None)
    torch.testing.assert_close(layer.read_folded(hidden, source), want, atol=1e-5, rtol=0)


def test_folding_pays_for_many_patches_and_few_queries() -> None:
    vit_g = Attention(QFormerConfig(), source_width=1408)
    assert vit_g.folding_pays(32, 257) and not vit_g.folding_pays(32, 36)
    mini = Attention(QFormerConfig(width=256, num_heads=4), source_width=1280)
    assert not mini.folding_pays(32, 36)
