"""The two ways to compute attention: PyTorch's fused one, and single steps for training on a CPU."""

import pytest
import torch

from engine.blip2.layers import attention


@pytest.mark.parametrize("masked", [False, True])
def test_single_steps_equal_the_fused_attention(masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 8)
    mask = None
    if masked:
        mask = torch.rand(3, 1, 4, 6) < 0.5
        mask[..., 0] = True
    want = attention(q, k, v, mask)
    got = attention(q.requires_grad_(), k, v, mask)
    torch.testing.assert_close(got.detach(), want, atol=1e-6, rtol=1e-5)
    assert got.requires_grad and want.shape == (3, 4, 16)


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 2, 4, 8, requires_grad=True)
    assert torch.equal(attention(q, q, q, None), attention(q, q, q, None))
    assert not torch.equal(attention(q, q, q, None, dropout=0.5), attention(q, q, q, None, dropout=0.5))
