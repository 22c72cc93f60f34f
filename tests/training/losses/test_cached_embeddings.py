"""A batch in chunks gives the whole batch's losses and gradients, the encoder's too; alone and in two processes."""

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


def inputs(picture_ids: bool) -> Stage1Inputs:
    random = torch.Generator().manual_seed(5)
    mask = torch.arange(9) < torch.tensor([3, 9, 4, 6, 3, 5])[:, None]
    ids = torch.randint(6, 40, (PAIRS, 9), generator=random) * mask
    pixels = torch.randn(PAIRS, 3, SIDE, SIDE, generator=random)
    photos = torch.tensor([1, 2, 1, 3, 4, 5]) if picture_ids else None
    return Stage1Inputs(pixels, ids, mask, photos, torch.rand(2, PAIRS, generator=random), seed=3)


def shared(batch: Stage1Inputs) -> Stage1Inputs:
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


def network(train_encoder: bool, dropout: float = 0.0) -> Retriever:
    net = tiny_net(tiny_config(dropout=dropout))
    net.vision.requires_grad_(train_encoder)
    return net.train()


def gradients(net: Retriever) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def whole(batch: Stage1Inputs, train_encoder: bool) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    net = network(train_encoder)
    got = stage1_losses(
        net,
        apply_vision_norm(net, encode_images(net, batch.images)),
        batch.ids,
        batch.mask,
        dec_id=4,
        image_ids=batch.picture_ids,
        draws_2N=batch.draws,
    )
    got.total_loss.backward()
    parts = {"loss": got.total_loss, "itc": got.itc, "itm": got.itm, "itg": got.itg}
    return {name: float(value.detach()) for name, value in parts.items()}, gradients(net)


def chunked(
    batch: Stage1Inputs, train_encoder: bool, chunk: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    net = network(train_encoder)
    wrapper: Any = NetworkWrapper(net)
    if current_world().size > 1:
        wrapper = wrap_with_ddp(wrapper)
    losses = backward_in_chunks(wrapper, batch, chunk, dec_id=4, label_smoothing=0.1)
    assert not losses["loss"].requires_grad
    return {name: float(value) for name, value in losses.items()}, gradients(net)


def assert_same(got: Any, want: Any) -> None:
    assert got[0] == pytest.approx(want[0], abs=2e-5)
    assert got[1].keys() == want[1].keys()
    for name, grad in want[1].items():
        torch.testing.assert_close(got[1][name], grad, atol=2e-5, rtol=2e-5, msg=name)


@pytest.mark.parametrize("train_encoder", [False, True])
@pytest.mark.parametrize(("chunk", "picture_ids"), [(2, False), (4, True), (6, False)])
def test_chunks_are_the_whole(train_encoder: bool, chunk: int, picture_ids: bool) -> None:
    batch = inputs(picture_ids)
    want = whole(batch, train_encoder)
    assert any(name.startswith("vision.") for name in want[1]) == train_encoder
    assert_same(chunked(batch, train_encoder, chunk), want)


def test_parts_alone_would_not_do() -> None:
    """Adding up the gradients of halves gives another gradient: ITC would miss the negatives across them."""
    batch = inputs(False)
    net = network(False)
    for rows in (slice(0, 3), slice(3, 6)):
        patches = apply_vision_norm(net, encode_images(net, batch.images[rows]))
        losses = stage1_losses(
            net, patches, batch.ids[rows], batch.mask[rows], dec_id=4, draws_2N=batch.draws[:, :3]
        )
        (losses.total_loss / 2).backward()
    want = whole(batch, False)[1]["photo_head.weight"]
    assert float((net.photo_head.weight.grad - want).abs().max()) > 1e-3


def test_dropout_is_the_same_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cached embeddings and those that are pulled must be made with the same dropout."""
    net = network(False, dropout=0.3)
    seen: list[torch.Tensor] = []
    project = net.project_photos

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(project(hidden).detach())
        return project(hidden)

    monkeypatch.setattr(net, "project_photos", keep)
    backward_in_chunks(NetworkWrapper(net), inputs(False), 3, dec_id=4, label_smoothing=0.1)
    first, second = seen[:2], seen[2:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) and not torch.equal(
        first[0], first[1]
    )


def in_one_of_two(rank: int, folder: Path) -> list[Any]:
    with join_process_group():
        return [chunked(shared(inputs(ids)), encoder, 2) for ids, encoder in ((False, False), (True, True))]


@pytest.mark.xdist_group("processes")
def test_chunks_in_two_processes(tmp_path: Path) -> None:
    both = run_in_two_processes(in_one_of_two, tmp_path)
    for number, (ids, encoder) in enumerate(((False, False), (True, True))):
        want = whole(inputs(ids), encoder)
        losses = {name: (both[0][number][0][name] + both[1][number][0][name]) / 2 for name in want[0]}
        for one_of_two in both:
            assert_same((losses, one_of_two[number][1]), want)
