"""Train on a batch in chunks as on the whole batch: cached embeddings (GradCache, arXiv:2101.06983).

ITC compares every pair of a batch with every other, so the gradients of chunks cannot simply be added up. First the
embeddings of all pairs are computed in chunks, without gradient, and ITC's gradient with respect to them is cached.
Then each chunk is computed once more, with gradient, and the cached gradient is passed back through its embeddings. ITM
and ITG are sums over pairs and belong to this second pass. An encoder that is trained is cached in the same way, a
level below: its patches collect their gradient over all chunks, then each chunk of pictures is encoded once more.

Shapes: B pairs of this process, N pairs of all processes, C pairs of a chunk, F photos fetched from other processes,
P patches, V vision width, T tokens.
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
    """The inputs of a training step of stage 1.

    images: pixels or patches, as `encode_images` takes them. ids, mask: token ids of the captions (B, T).
    picture_ids: (B,), equal for pairs of the same photo, or None when no two pairs count as the same photo.
    draws, queries: see `stage1_losses.stage1_losses`; draws are (2, N). seed: of the dropout.
    """

    images: Tensor
    ids: Tensor
    mask: Tensor
    picture_ids: Tensor | None
    draws: Tensor
    seed: int
    queries: Tensor | None = None


def encode_images(net: Retriever | Captioner, images: Tensor) -> Tensor:
    """Return the patches (B, P, V) of images, before `vision_norm`; without gradient where the encoder is frozen.

    images: pixels (B, 3, H, W), or patches (B, P, V) that were computed before and are returned as they are.
    """
    if images.ndim == 3:
        return images
    weight = next(net.vision.parameters())
    with torch.set_grad_enabled(weight.requires_grad and torch.is_grad_enabled()):
        return net.vision(images.to(weight.dtype))


def backward_in_chunks(
    wrapper: nn.Module, batch: Stage1Inputs, chunk: int, *, dec_id: int, label_smoothing: float
) -> dict[str, Tensor]:
    """Run all passes of a step in chunks, the backward passes too, and return the losses without gradient.

    wrapper: the network in a `NetworkWrapper`, which DDP or FSDP may wrap again. chunk: C. The gradients are added to
    those of the parameters and averaged over processes. Losses and gradients equal those of `stage1_losses` on the
    whole batch, but for dropout. The losses, by name, are those of this process.
    """
    rows_of_chunks = list(torch.arange(len(batch.ids), device=batch.ids.device).split(chunk))
    postpone_averaging: Callable[[], AbstractContextManager[Any]] = getattr(wrapper, "no_sync", nullcontext)
    with postpone_averaging():
        patches, pass_back_to_encoder = _encode_chunks(wrapper, batch, rows_of_chunks)
        contrast, gradients = _contrast_chunks(wrapper, batch, patches, rows_of_chunks, label_smoothing)
        fetched, negative_photos = fetch_rows(patches, contrast.negatives[0])
        pool = [patches, fetched.detach().requires_grad_(fetched.requires_grad)]
        texts = gather_texts(batch.ids, batch.mask)
        token_weight = token_mean_weight(batch.mask) / batch.mask[:, 1:].sum()
        itm_and_itg = torch.zeros(2, device=batch.ids.device)
        for number, rows in enumerate(rows_of_chunks):
            # The dropout must be that with which the cached embeddings were computed.
            torch.manual_seed(batch.seed + number)
            chunk_of_pairs = PairChunk(
                batch,
                rows,
                contrast.negatives[1][rows],
                negative_photos[rows],
                texts,
                token_weight,
                len(rows_of_chunks),
            )
            loss, losses = wrapper(_chunk_losses, chunk_of_pairs, pool, gradients, dec_id, label_smoothing)
            loss.backward()
            itm_and_itg += losses
        if fetched.requires_grad:
            gradient = pool[1].grad
            fetched.backward(torch.zeros_like(fetched) if gradient is None else gradient)
        pass_back_to_encoder()
    average_gradients(wrapper)
    itc, (itm, itg) = contrast.loss.detach(), itm_and_itg
    return {"loss": itc + itm + itg, "itc": itc, "itm": itm, "itg": itg}


def _encode_chunks(
    wrapper: nn.Module, batch: Stage1Inputs, rows_of_chunks: list[Tensor]
) -> tuple[Tensor, Callable[[], None]]:
    """Compute the patches (B, P, V) of all pictures, without a graph.

    Also returns a function that passes the gradient which the patches have collected back through the encoder. It does
    nothing when the encoder is frozen.
    """
    with torch.no_grad():
        patches = torch.cat([wrapper(encode_images, batch.images[rows]) for rows in rows_of_chunks])
    is_trained = any(p.requires_grad for name, p in wrapper.named_parameters() if ".vision." in f".{name}")
    patches.requires_grad_(is_trained)

    def pass_back_to_encoder() -> None:
        if patches.grad is None:
            return
        for rows in rows_of_chunks:
            wrapper(encode_images, batch.images[rows]).backward(patches.grad[rows])

    return patches, pass_back_to_encoder


@dataclass(frozen=True)
class _EmbeddingGradients:
    """ITC's gradients with respect to the embeddings of photos and texts, and to the temperature."""

    photos: Tensor
    texts: Tensor
    temperature: Tensor


def _contrast_chunks(
    wrapper: nn.Module,
    batch: Stage1Inputs,
    patches: Tensor,
    rows_of_chunks: list[Tensor],
    label_smoothing: float,
) -> tuple[Contrast, _EmbeddingGradients]:
    """Embed all pairs chunk by chunk, and compute ITC with its gradients with respect to the embeddings."""

    def embed(net: Retriever, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys = net.compute_photo_keys(apply_vision_norm(net, patches[rows]))
        photos = net.encode_photos(keys)
        return photos, net.encode_texts(batch.ids[rows], batch.mask[rows]), net.temperature.float().clone()

    embeddings = []
    for number, rows in enumerate(rows_of_chunks):
        torch.manual_seed(batch.seed + number)
        # The graph is built and dropped at once. Without it attention takes another kernel, whose dropout differs.
        embeddings.append([tensor.detach() for tensor in wrapper(embed, rows)])
    photos, texts = (torch.cat([chunk[side] for chunk in embeddings]).requires_grad_() for side in (0, 1))
    temperature = embeddings[0][2].requires_grad_()
    contrast = compute_contrast(
        photos, texts, temperature, batch.picture_ids, label_smoothing=label_smoothing, draws_2N=batch.draws
    )
    gradients = torch.autograd.grad(contrast.loss, (photos, texts, temperature))
    return contrast, _EmbeddingGradients(*gradients)


@dataclass(frozen=True)
class PairChunk:
    """The pairs of a chunk, and their negatives.

    rows: (C,), the pairs' rows in the batch of this process. texts_for_photos: (C,), a wrong text for each photo, as a
    row of all N texts. photos_for_texts: (C,), a wrong photo for each text, as a row of this process's photos followed
    by the fetched ones (B + F). all_texts: token ids and mask of all N texts. token_weight: weight of a predicted token
    in ITG's mean. num_chunks: number of chunks of the batch.
    """

    batch: Stage1Inputs
    rows: Tensor
    texts_for_photos: Tensor
    photos_for_texts: Tensor
    all_texts: tuple[Tensor, Tensor]
    token_weight: Tensor
    num_chunks: int


def _chunk_losses(
    net: Retriever,
    chunk: PairChunk,
    pool: list[Tensor],
    gradients: _EmbeddingGradients,
    dec_id: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Compute a number whose gradient is the chunk's part of the step's gradient, and the chunk's parts of ITM and ITG.

    pool: patches of this process's photos and of the fetched ones. Returns a scalar, and (2,) without gradient.
    """
    batch, rows = chunk.batch, chunk.rows
    count, batch_size = len(rows), len(batch.ids)
    ids, mask = batch.ids[rows], batch.mask[rows]
    photo_keys = net.compute_photo_keys(apply_vision_norm(net, pool[0][rows]))
    hidden, past = net.qformer.read_photos(photo_keys)
    photos, texts = net.project_photos(hidden), net.encode_texts(ids, mask)
    itc = (photos * gradients.photos[rows]).sum() + (texts * gradients.texts[rows]).sum()
    itc = itc + net.temperature * gradients.temperature / chunk.num_chunks
    negative_keys = net.compute_photo_keys(apply_vision_norm(net, torch.cat(pool)[chunk.photos_for_texts]))
    all_keys = [
        (torch.cat([k, negative_k]), torch.cat([v, negative_v]))
        for (k, v), (negative_k, negative_v) in zip(photo_keys, negative_keys, strict=True)
    ]
    photo_rows = torch.arange(count, device=ids.device)
    text_rows = rows + current_world().rank * batch_size
    logits = compute_match_logits(
        net,
        all_keys,
        *chunk.all_texts,
        torch.cat([photo_rows, photo_rows + count, photo_rows]),
        torch.cat([text_rows, text_rows, chunk.texts_for_photos]),
        None,
    )
    itm = itm_loss(logits, count) * (count / batch_size)
    itg = caption_loss(net, past, ids, mask, dec_id, label_smoothing) * mask[:, 1:].sum() * chunk.token_weight
    return itc + itm + itg, torch.stack([itm, itg]).detach()
