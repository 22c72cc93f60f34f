"""The three losses of a batch of pairs (BLIP-2, section 3.2), in one process or in several that join their batches.

Every pass of a batch reads the same photos, so their cross-attention keys and values are made once.

Shapes: B pairs of this process, N pairs of all (N = B on one), F photos fetched from other processes, P patches,
V vision width, Q queries, T tokens, D Q-Former width, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.blip2.captioner import Captioner
from engine.blip2.layers import KeysValues
from engine.blip2.qformer import PhotoKeys
from engine.blip2.retriever import Retriever
from engine.errors import TrainingError
from training.distributed.gathering import fetch_rows, gather, gather_constants, gather_texts, mean_weight
from training.distributed.world import current_world
from training.losses.itc_itm_itg import (
    Similarities,
    draw_negatives,
    itc_loss,
    itc_similarities,
    itg_loss,
    itm_loss,
)

LENGTH_GROUPS = 4

Negatives = tuple[Tensor, Tensor]
"""For each text the number of a photo that does not fit, for each photo that of such a text, among the N pairs of all
processes; (B,) int64 each."""


@dataclass(frozen=True)
class Stage1Losses:
    """The three losses (equal weights in BLIP-2) and what they were made from.

    Of this process: the mean over all processes is the loss of the joined batch.
    """

    itc: Tensor
    itm: Tensor
    itg: Tensor
    match_logits: Tensor
    negatives: Negatives
    similarities: Similarities

    @property
    def total_loss(self) -> Tensor:
        return self.itc + self.itm + self.itg


def apply_vision_norm(net: Retriever | Captioner, features_BPV: Tensor) -> Tensor:
    """What the frozen encoder gave, of any dtype -> patches (B, P, V) after the trained `vision_norm`."""
    return net.vision_norm(features_BPV.to(net.vision_norm.weight.dtype))


def stage1_losses(
    model: Retriever,
    patches_BPV: Tensor,
    ids_BT: Tensor,
    mask_BT: Tensor,
    *,
    dec_id: int,
    image_ids: Tensor | None = None,
    negatives: Negatives | None = None,
    label_smoothing: float = 0.1,
    queries: Tensor | None = None,
    draws_2N: Tensor | None = None,
) -> Stage1Losses:
    """All three losses of a batch of matching pairs; every process calls it with as many pairs.

    patches: after `vision_norm`. ids, mask: [CLS] ... [SEP], padded. dec_id: takes the place of [CLS] for ITG.
    image_ids (B,): pairs with equal ids show the same photo (soft targets, never each other's negatives).
    negatives: forced ones, for tests; drawn when not given. queries: numbers of those that take part, all when not
    given. draws: uniform numbers that decide the negatives of the texts and of the photos of all processes, so that
    the same ones are drawn however the batch is shared; fresh ones when not given. Raises TrainingError for a batch of
    one photo in all.
    """
    keys = model.compute_photo_keys(patches_BPV)
    hidden, past = model.qformer.read_photos(keys, queries)
    photos, texts = model.project_photos(hidden), model.encode_texts(ids_BT, mask_BT)
    contrast = compute_contrast(
        photos, texts, model.temperature, image_ids, label_smoothing=label_smoothing, draws_2N=draws_2N
    )
    negatives = contrast.negatives if negatives is None else negatives
    all_ids, all_masks = gather_texts(ids_BT, mask_BT)
    fetched_FPV, photo_rows = fetch_rows(patches_BPV, negatives[0])
    if current_world().size > 1:
        keys = [
            (torch.cat([own_k, k]), torch.cat([own_v, v]))
            for (own_k, own_v), (k, v) in zip(keys, model.compute_photo_keys(fetched_FPV), strict=True)
        ]
    own = torch.arange(len(ids_BT), device=ids_BT.device)
    own_texts = own + current_world().rank * len(ids_BT)
    logits = compute_match_logits(
        model,
        keys,
        all_ids,
        all_masks,
        torch.cat([own, photo_rows, own]),
        torch.cat([own_texts, own_texts, negatives[1]]),
        queries,
    )
    itg = caption_loss(model, past, ids_BT, mask_BT, dec_id, label_smoothing)
    itg = itg * token_mean_weight(mask_BT)
    return Stage1Losses(
        contrast.loss, itm_loss(logits, len(own)), itg, logits, negatives, contrast.similarities
    )


def compute_itc_loss(
    model: Retriever,
    patches_BPV: Tensor,
    ids_BT: Tensor,
    mask_BT: Tensor,
    *,
    label_smoothing: float = 0.1,
    queries: Tensor | None = None,
) -> Tensor:
    """The contrastive loss of `stage1_losses` without the passes of the other two."""
    hidden, _ = model.qformer.read_photos(model.compute_photo_keys(patches_BPV), queries)
    photos, texts = model.project_photos(hidden), model.encode_texts(ids_BT, mask_BT)
    return compute_contrast(photos, texts, model.temperature, label_smoothing=label_smoothing).loss


@dataclass(frozen=True)
class Contrast:
    """ITC's loss and scores, and the hard negatives drawn from them."""

    loss: Tensor
    similarities: Similarities
    negatives: Negatives


def compute_contrast(
    photos_BQE: Tensor,
    texts_BE: Tensor,
    temperature: Tensor,
    image_ids: Tensor | None = None,
    *,
    label_smoothing: float = 0.1,
    draws_2N: Tensor | None = None,
) -> Contrast:
    """ITC of this process's pairs against those of all. See `stage1_losses`."""
    batch, world = len(texts_BE), current_world()
    if batch * world.size < 2:
        raise TrainingError(f"A batch of {batch} pair has no negatives; use at least 2.")
    similarities = itc_similarities(photos_BQE, texts_BE, gather(photos_BQE), gather(texts_BE), temperature)
    offset = world.rank * batch
    numbers = torch.arange(batch * world.size, device=texts_BE.device)
    ids = numbers if image_ids is None else gather_constants(image_ids)
    same_BN = world.select_share(ids)[:, None] == ids[None, :]
    loss = itc_loss(
        similarities, offset, label_smoothing, same_photo_BN=None if image_ids is None else same_BN
    )
    draws = (
        (None, None)
        if draws_2N is None
        else [world.select_share(row) for row in draws_2N.to(texts_BE.device)]
    )
    negatives = (
        draw_negatives(similarities.text_to_photo, same_BN, draws[0]),
        draw_negatives(similarities.photo_to_text, same_BN, draws[1]),
    )
    return Contrast(loss, similarities, negatives)


def compute_match_logits(
    model: Retriever,
    keys: PhotoKeys,
    ids_NT: Tensor,
    mask_NT: Tensor,
    photos_M: Tensor,
    texts_M: Tensor,
    queries: Tensor | None,
) -> Tensor:
    """Match logits (M, 2) of pairs given by number: rows of the keys, rows of the texts.

    Pairs go in groups of like length: half of a batch padded to its longest text is padding.
    """
    lengths = mask_NT.sum(1)[texts_M]
    by_length = lengths.argsort()
    logits = []
    for some in by_length.chunk(LENGTH_GROUPS):
        longest = int(lengths[some[-1]])
        pairs = [(k[photos_M[some]], v[photos_M[some]]) for k, v in keys]
        ids, mask = ids_NT[texts_M[some], :longest], mask_NT[texts_M[some], :longest]
        logits.append(model.match(pairs, ids, mask, queries))
    return torch.cat(logits)[by_length.argsort()]


def caption_loss(
    model: Retriever,
    past: Sequence[KeysValues],
    ids_BT: Tensor,
    mask_BT: Tensor,
    dec_id: int,
    label_smoothing: float,
) -> Tensor:
    """Every token predicts the next one; the vocabulary is scored for those alone that have one. Mean over tokens."""
    read_BT = torch.cat([torch.full_like(ids_BT[:, :1], dec_id), ids_BT[:, 1:]], dim=1)
    hidden_BTD = model.qformer.write_texts(past, read_BT, mask_BT)
    followed_BT = mask_BT[:, 1:]
    logits = model.caption_head(hidden_BTD[:, :-1][followed_BT], model.qformer.words)
    return itg_loss(logits, read_BT[:, 1:][followed_BT], label_smoothing)


def token_mean_weight(mask_BT: Tensor) -> Tensor | float:
    """What this process's mean over tokens weighs in the mean over processes: its tokens over their mean number."""
    return mean_weight(mask_BT[:, 1:].sum())
