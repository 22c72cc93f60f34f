"""A batch in chunks gives the losses and gradients of the whole batch, in one process and in two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SIDE, tiny_config, tiny_net
from two_processes import run_in_two_processes

from engine.blip2.retriever import Retriever
from training.distributed.world import current_world, join_process_group
from training.distributed.wrapping import NetworkWrapper, wrap_with_ddp
from training.losses.cached_embeddings import Stage1Inputs, backward_in_chunks, encode_images
from training.losses.stage1_losses import apply_vision_norm, stage1_losses

PAIRS = 6


def make_inputs(picture_ids: bool) -> Stage1Inputs:
    random = torch.Generator().manual_seed(5)
    mask = torch.arange(9) < torch.tensor([3, 9, 4, 6, 3, 5])[:, None]
    ids = torch.randint(6, 40, (PAIRS, 9), generator=random) * mask
    pixels = torch.randn(PAIRS, 3, SIDE, SIDE, generator=random)
    photos = torch.tensor([1, 2, 1, 3, 4, 5]) if picture_ids else None
    return Stage1Inputs(pixels, ids, mask, photos, torch.rand(2, PAIRS, generator=random), seed=3)


def select_shares(batch: Stage1Inputs) -> Stage1Inputs:
    world = current_world()
    photos = None if batch.picture_ids is None else world.select_share(batch.picture_ids)
    return Stage1Inputs(
        world.select_share(batch.images),
        world.select_share(batch.ids),
        world.select_share(batch.mask),
        photos,
        batch.draws,
        batch.seed,
    )


def make_network(train_encoder: bool, dropout: float = 0.0) -> Retriever:
    net = tiny_net(tiny_config(dropout=dropout))
    net.vision.requires_grad_(train_encoder)
    return net.train()


def collect_gradients(net: Retriever) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def compute_whole(
    batch: Stage1Inputs, train_encoder: bool
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    net = make_network(train_encoder)
    losses = stage1_losses(
        net,
        apply_vision_norm(net, encode_images(net, batch.images)),
        batch.ids,
        batch.mask,
        dec_id=4,
        image_ids=batch.picture_ids,
        draws_2N=batch.draws,
    )
    losses.total_loss.backward()
    parts = {"loss": losses.total_loss, "itc": losses.itc, "itm": losses.itm, "itg": losses.itg}
    return {name: float(value.detach()) for name, value in parts.items()}, collect_gradients(net)


def compute_in_chunks(
    batch: Stage1Inputs, train_encoder: bool, chunk: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    net = make_network(train_encoder)
    wrapper: Any = NetworkWrapper(net)
    if current_world().size > 1:
        wrapper = wrap_with_ddp(wrapper)
    losses = backward_in_chunks(wrapper, batch, chunk, dec_id=4, label_smoothing=0.1)
    assert not losses["loss"].requires_grad
    return {name: float(value) for name, value in losses.items()}, collect_gradients(net)


def assert_same_losses_and_gradients(actual: Any, expected: Any) -> None:
    assert actual[0] == pytest.approx(expected[0], abs=2e-5)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        torch.testing.assert_close(actual[1][name], grad, atol=2e-5, rtol=2e-5, msg=name)


@pytest.mark.parametrize("train_encoder", [False, True])
@pytest.mark.parametrize(("chunk", "picture_ids"), [(2, False), (4, True), (6, False)])
def test_chunks_train_as_the_whole_batch(train_encoder: bool, chunk: int, picture_ids: bool) -> None:
    batch = make_inputs(picture_ids)
    expected = compute_whole(batch, train_encoder)
    assert any(name.startswith("vision.") for name in expected[1]) == train_encoder
    assert_same_losses_and_gradients(compute_in_chunks(batch, train_encoder, chunk), expected)


def test_gradients_of_parts_alone_do_not_add_up_to_those_of_the_whole() -> None:
    """Adding up the gradients of halves gives another gradient: ITC would miss the negatives across them."""
    batch = make_inputs(False)
    net = make_network(False)
    for rows in (slice(0, 3), slice(3, 6)):
        patches = apply_vision_norm(net, encode_images(net, batch.images[rows]))
        losses = stage1_losses(
            net, patches, batch.ids[rows], batch.mask[rows], dec_id=4, draws_2N=batch.draws[:, :3]
        )
        (losses.total_loss / 2).backward()
    expected = compute_whole(batch, False)[1]["photo_head.weight"]
    assert float((net.photo_head.weight.grad - expected).abs().max()) > 1e-3


def test_dropout_is_the_same_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cached embeddings and those of the second pass must have the same dropout."""
    net = make_network(False, dropout=0.3)
    seen: list[torch.Tensor] = []
    project = net.project_photos

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(project(hidden).detach())
        return project(hidden)

    monkeypatch.setattr(net, "project_photos", keep)
    backward_in_chunks(NetworkWrapper(net), make_inputs(False), 3, dec_id=4, label_smoothing=0.1)
    first, second = seen[:2], seen[2:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) and not torch.equal(
        first[0], first[1]
    )


def in_one_of_two(rank: int, folder: Path) -> list[Any]:
    with join_process_group():
        return [
            compute_in_chunks(select_shares(make_inputs(ids)), encoder, 2)
            for ids, encoder in ((False, False), (True, True))
        ]


@pytest.mark.xdist_group("processes")
def test_chunks_in_two_processes(tmp_path: Path) -> None:
    both = run_in_two_processes(in_one_of_two, tmp_path)
    for number, (ids, encoder) in enumerate(((False, False), (True, True))):
        expected = compute_whole(make_inputs(ids), encoder)
        losses = {name: (both[0][number][0][name] + both[1][number][0][name]) / 2 for name in expected[0]}
        for results in both:
            assert_same_losses_and_gradients((losses, results[number][1]), expected)
