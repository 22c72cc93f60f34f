"""Operations are counted as PyTorch counts them, and counting changes no result."""

from __future__ import annotations

import torch
from tiny import tiny_config, tiny_net
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.loop.flop_count import OperationCount


def test_a_product_and_its_backward_pass_are_counted() -> None:
    layer = nn.Linear(6, 8)
    rows = torch.randn(4, 6, requires_grad=True)
    with OperationCount() as count:
        layer(rows).sum().backward()
    # The product, and one each for the weight's and the input's gradient.
    assert count.operations == 3 * 2 * 4 * 6 * 8


def test_the_count_is_that_of_pytorch() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    rows = torch.randn(2, 5, 32)
    with OperationCount() as count:
        layer(rows).sum().backward()
    with FlopCounterMode(display=False) as reference:
        layer(rows).sum().backward()
    assert count.operations == reference.get_total_flops() > 0


def test_counting_changes_no_bit() -> None:
    """A resumed run counts its first step: it must give what that step gives in a run that was never stopped."""
    net = tiny_net(tiny_config(dropout=0.0)).train()
    pixels = torch.randn(2, 3, 32, 32)
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])

    def gradients() -> list[torch.Tensor]:
        net.zero_grad()
        keys = net.compute_photo_keys(net.encode_patches(pixels))
        (net.match(keys, ids, ids != 0).sum() + net.encode_texts(ids, ids != 0).sum()).backward()
        return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]

    plain = gradients()
    with OperationCount() as count:
        counted = gradients()
    assert count.operations > 0 and len(plain) == len(counted) > 20
    assert all(torch.equal(first, second) for first, second in zip(plain, counted, strict=True))
