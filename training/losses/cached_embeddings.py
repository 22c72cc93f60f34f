"""A batch in chunks that trains as the whole one: cached embeddings (GradCache, arXiv:2101.06983).

ITC compares every pair of a batch with every other, so gradients of parts cannot simply be added up. Here the
embeddings of all pairs are made first, in chunks and without gradient; ITC's gradient with respect to them is cached;
then each chunk is computed once more, with gradient, and its embeddings are pulled by what is cached for them. ITM and
ITG are sums over pairs and join in that second pass. An encoder that is trained on is cached in the same way, one level
below: its patches collect their gradient over all chunks, then each chunk of pictures is encoded once more.

Shapes: B pairs of this process, N of all, C pairs of a chunk, F fetched from others, P patches, V vision width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.blip2.captioner import Captioner
from engine.blip2.retriever import Retriever
from training.distributed.gathering import fetch_rows, gather_texts
from training.distributed.world import current_world
from training.distributed.wrapping import average_gradients
from training.losses.itc_itm_itg import itm_loss
from training.losses.stage1_losses import (
    Contrast,
    apply_vision_norm,
    caption_loss,
    compute_contrast,
    compute_match_logits,
    token_mean_weight,
)


@dataclass(frozen=True)
class Stage1Inputs:
    """What a step of stage 1 reads.

    images: what `encode_images` takes. draws (2, N), queries: see `stage1_losses.stage1_losses`. seed: of dropout.
    """

    images: Tensor
    ids: Tensor
    mask: Tensor
    picture_ids: Tensor | None
    draws: Tensor
    seed: int
    queries: Tensor | None = None


def encode_images(net: Retriever | Captioner, images: Tensor) -> Tensor:
    """Return patches (B, P, V) before `vision_norm`; without gradient where the encoder is frozen.

    images: pixels (B, 3, H, W), or patches (B, P, V) that were made before, which stay as they are.
    """
    if images.ndim == 3:
        return images
    first = next(net.vision.parameters())
    with torch.set_grad_enabled(first.requires_grad and torch.is_grad_enabled()):
        return net.vision(images.to(first.dtype))


def backward_in_chunks(
    wrapper: nn.Module, batch: Stage1Inputs, chunk: int, *, dec_id: int, label_smoothing: float
) -> dict[str, Tensor]:
    """All passes of a step, the backward ones too -> the losses of this process, without gradient.

    through: the door to the network (`wrapping.Through`), bare or as DDP or FSDP wrap it. chunk: C. Gradients are
    added to the parameters' and averaged over processes. Equal to `stage1_losses` of the whole batch but for dropout.
    """
    rows = list(torch.arange(len(batch.ids), device=batch.ids.device).split(chunk))
    quiet: Callable[[], AbstractContextManager[Any]] = getattr(wrapper, "no_sync", nullcontext)
    with quiet():
        features, pull_features = _encoded(wrapper, batch, rows)
        contrast, pulls = _contrasted(wrapper, batch, features, rows, label_smoothing)
        fetched, photo_rows = fetch_rows(features, contrast.negatives[0])
        pool = [features, fetched.detach().requires_grad_(fetched.requires_grad)]
        texts = gather_texts(batch.ids, batch.mask)
        share = token_mean_weight(batch.mask) / batch.mask[:, 1:].sum()
        sums = torch.zeros(2, device=batch.ids.device)
        for number, some in enumerate(rows):
            torch.manual_seed(batch.seed + number)  # the dropout that the cached embeddings were made with
            part = PairChunk(
                batch, some, contrast.negatives[1][some], photo_rows[some], texts, share, len(rows)
            )
            loss, parts = wrapper(_chunk_losses, part, pool, pulls, dec_id, label_smoothing)
            loss.backward()
            sums += parts
        if fetched.requires_grad:
            grad = pool[1].grad
            fetched.backward(torch.zeros_like(fetched) if grad is None else grad)
        pull_features()
    average_gradients(wrapper)
    itc, (itm, itg) = contrast.loss.detach(), sums
    return {"loss": itc + itm + itg, "itc": itc, "itm": itm, "itg": itg}


def _encoded(
    wrapper: nn.Module, batch: Stage1Inputs, rows: list[Tensor]
) -> tuple[Tensor, Callable[[], None]]:
    """All patches as a leaf of their own, and what carries the gradient they collect on into the encoder."""
    with torch.no_grad():
        features = torch.cat([wrapper(encode_images, batch.images[some]) for some in rows])
    trained = any(p.requires_grad for name, p in wrapper.named_parameters() if ".vision." in f".{name}")
    features.requires_grad_(trained)

    def pull() -> None:
        if features.grad is None:
            return
        for some in rows:
            wrapper(encode_images, batch.images[some]).backward(features.grad[some])

    return features, pull


@dataclass(frozen=True)
class _Pulls:
    """ITC's gradient with respect to the photos' and the texts' embeddings and the temperature."""

    photos: Tensor
    texts: Tensor
    temperature: Tensor


def _contrasted(
    wrapper: nn.Module, batch: Stage1Inputs, features: Tensor, rows: list[Tensor], label_smoothing: float
) -> tuple[Contrast, _Pulls]:
    def embed(net: Retriever, some: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys = net.compute_photo_keys(apply_vision_norm(net, features[some]))
        photos = net.encode_photos(keys)
        return photos, net.encode_texts(batch.ids[some], batch.mask[some]), net.temperature.float().clone()

    made = []
    for number, some in enumerate(rows):
        torch.manual_seed(batch.seed + number)
        # With gradient and dropped at once: without, attention takes another kernel, and its dropout other draws.
        made.append([one.detach() for one in wrapper(embed, some)])
    photos, texts = (torch.cat([one[side] for one in made]).requires_grad_() for side in (0, 1))
    temperature = made[0][2].requires_grad_()
    contrast = compute_contrast(
        photos, texts, temperature, batch.picture_ids, label_smoothing=label_smoothing, draws_2N=batch.draws
    )
    pulls = torch.autograd.grad(contrast.loss, (photos, texts, temperature))
    return contrast, _Pulls(*pulls)


@dataclass(frozen=True)
class PairChunk:
    """A chunk. rows: its pairs among the B; texts_for_photos, photos_for_texts: its negatives, among all N texts and in
    the pool [own; fetched]."""

    batch: Stage1Inputs
    rows: Tensor
    texts_for_photos: Tensor
    photos_for_texts: Tensor
    all_texts: tuple[Tensor, Tensor]
    token_weight: Tensor
    num_chunks: int


def _chunk_losses(
    net: Retriever, part: PairChunk, pool: list[Tensor], pulls: _Pulls, dec_id: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The chunk's part of the step's loss, as far as gradients go; its parts of ITM and ITG."""
    batch, rows = part.batch, part.rows
    count, size = len(rows), len(batch.ids)
    ids, mask = batch.ids[rows], batch.mask[rows]
    own = net.compute_photo_keys(apply_vision_norm(net, pool[0][rows]))
    hidden, past = net.qformer.read_photos(own)
    photos, texts = net.project_photos(hidden), net.encode_texts(ids, mask)
    pulled = (photos * pulls.photos[rows]).sum() + (texts * pulls.texts[rows]).sum()
    pulled = pulled + net.temperature * pulls.temperature / part.num_chunks
    wrong = net.compute_photo_keys(apply_vision_norm(net, torch.cat(pool)[part.photos_for_texts]))
    keys = [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(own, wrong, strict=True)]
    first = torch.arange(count, device=ids.device)
    fitting = rows + current_world().rank * size
    logits = compute_match_logits(
        net,
        keys,
        *part.all_texts,
        torch.cat([first, first + count, first]),
        torch.cat([fitting, fitting, part.texts_for_photos]),
        None,
    )
    itm = itm_loss(logits, count) * (count / size)
    itg = caption_loss(net, past, ids, mask, dec_id, label_smoothing) * mask[:, 1:].sum() * part.token_weight
    return pulled + itm + itg, torch.stack([itm, itg]).detach()
