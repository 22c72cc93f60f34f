"""Compute the three losses of a batch of pairs (BLIP-2, section 3.2), in one process or in several that share a batch.

ITC compares photos with texts, ITM tells matching pairs from others, and ITG writes the captions. All three read the
same photos, so the photos' cross-attention keys and values are computed once.

Shapes: B pairs of this process, N pairs of all processes (N = B for one process), F photos fetched from other
processes, M pairs to match, P patches, V vision width, Q queries, T tokens, D Q-Former width, E embedding.
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
    add_itc_scores,
    draw_negatives,
    itc_loss,
    itc_similarities,
    itg_loss,
    itm_loss,
)

LENGTH_GROUPS = 4
"""Number of groups of like length into which `compute_match_logits` sorts its pairs."""

Negatives = tuple[Tensor, Tensor]
"""Two int64 tensors (B,): for each text the number of a photo that does not fit it, and for each photo the number of a
text that does not fit it. Pairs are numbered from 0 to N - 1 over all processes."""


@dataclass(frozen=True)
class Stage1Losses:
    """The three losses of a batch, which have equal weights in BLIP-2, and the scores they were computed from.

    A loss is that of this process; its mean over all processes is the loss of the whole batch.
    match_logits: (3B, 2), of the pairs, then of each text with a wrong photo, then of each photo with a wrong text.
    """

    itc: Tensor
    itm: Tensor
    itg: Tensor
    match_logits: Tensor
    negatives: Negatives
    similarities: Similarities

    @property
    def total_loss(self) -> Tensor:
        """Return the sum of the three losses."""
        return self.itc + self.itm + self.itg


def apply_vision_norm(net: Retriever | Captioner, patches_BPV: Tensor) -> Tensor:
    """Return patches (B, P, V) after the network's trained layer norm `vision_norm`.

    patches: the output of the image encoder, of any dtype; it is cast to the dtype of the norm's weights.
    """
    return net.vision_norm(patches_BPV.to(net.vision_norm.weight.dtype))


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
    residual_match: bool = False,
) -> Stage1Losses:
    """Compute all three losses of a batch of matching pairs; every process calls it with equally many pairs.

    patches: after `vision_norm`. ids, mask: [CLS] ... [SEP], padded. dec_id: token that replaces [CLS] for ITG.
    image_ids: (B,), equal for pairs that show the same photo (soft targets, never each other's negatives).
    negatives: given ones, for tests; by default they are drawn from ITC's scores. queries: numbers of the queries that
    take part, by default all. draws: uniform numbers that decide the negatives of all N texts and of all N photos, so
    that the result does not depend on how the batch is shared; by default fresh ones. residual_match: whether ITM
    learns what ITC gets wrong (`add_itc_scores`).
    Raise TrainingError for a batch of one pair in all.
    """
    keys = model.compute_photo_keys(patches_BPV)
    hidden, past = model.qformer.read_photos(keys, queries)
    photos, texts = model.project_photos(hidden), model.encode_texts(ids_BT, mask_BT)
    contrast = compute_contrast(
        photos, texts, model.temperature, image_ids, label_smoothing=label_smoothing, draws_2N=draws_2N
    )
    negatives = contrast.negatives if negatives is None else negatives
    logits = _match_with_negatives(model, patches_BPV, keys, ids_BT, mask_BT, negatives, queries)
    summed_logits = logits
    if residual_match:
        offset = current_world().rank * len(ids_BT)
        summed_logits = add_itc_scores(logits, contrast.similarities, *negatives, offset)
    itm = itm_loss(summed_logits, len(ids_BT))
    itg = caption_loss(model, past, ids_BT, mask_BT, dec_id, label_smoothing) * token_mean_weight(mask_BT)
    return Stage1Losses(contrast.loss, itm, itg, logits, negatives, contrast.similarities)


def _match_with_negatives(
    model: Retriever,
    patches_BPV: Tensor,
    keys: PhotoKeys,
    ids_BT: Tensor,
    mask_BT: Tensor,
    negatives: Negatives,
    queries: Tensor | None,
) -> Tensor:
    """Return match logits (3B, 2) of the pairs and of their negatives, in the order of `Stage1Losses.match_logits`."""
    all_ids, all_masks = gather_texts(ids_BT, mask_BT)
    fetched_FPV, negative_photos = fetch_rows(patches_BPV, negatives[0])
    if current_world().size > 1:
        keys = [
            (torch.cat([own_k, fetched_k]), torch.cat([own_v, fetched_v]))
            for (own_k, own_v), (fetched_k, fetched_v) in zip(
                keys, model.compute_photo_keys(fetched_FPV), strict=True
            )
        ]
    photos = torch.arange(len(ids_BT), device=ids_BT.device)
    texts = photos + current_world().rank * len(ids_BT)
    photo_rows = torch.cat([photos, negative_photos, photos])
    text_rows = torch.cat([texts, texts, negatives[1]])
    return compute_match_logits(model, keys, all_ids, all_masks, photo_rows, text_rows, queries)


def compute_itc_loss(
    model: Retriever,
    patches_BPV: Tensor,
    ids_BT: Tensor,
    mask_BT: Tensor,
    *,
    label_smoothing: float = 0.1,
    queries: Tensor | None = None,
) -> Tensor:
    """Compute the contrastive loss of a batch of pairs, without the passes of ITM and ITG.

    Parameters: as in `stage1_losses`.
    """
    hidden, _ = model.qformer.read_photos(model.compute_photo_keys(patches_BPV), queries)
    photos, texts = model.project_photos(hidden), model.encode_texts(ids_BT, mask_BT)
    return compute_contrast(photos, texts, model.temperature, label_smoothing=label_smoothing).loss


@dataclass(frozen=True)
class Contrast:
    """The loss and the scores of ITC, and the hard negatives that were drawn from the scores."""

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
    """Contrast the pairs of this process with those of all processes, and draw hard negatives by the scores.

    photos, texts: embeddings of the pairs. image_ids, draws: as in `stage1_losses`.
    Raise TrainingError for a batch of one pair in all.
    """
    num_pairs, world = len(texts_BE), current_world()
    if num_pairs * world.size < 2:
        raise TrainingError(f"A batch of {num_pairs} pair has no negatives; use at least 2.")
    similarities = itc_similarities(photos_BQE, texts_BE, gather(photos_BQE), gather(texts_BE), temperature)
    offset = world.rank * num_pairs
    pair_numbers = torch.arange(num_pairs * world.size, device=texts_BE.device)
    ids_N = pair_numbers if image_ids is None else gather_constants(image_ids)
    same_photo_BN = world.select_share(ids_N)[:, None] == ids_N[None, :]
    soft_targets = None if image_ids is None else same_photo_BN
    loss = itc_loss(similarities, offset, label_smoothing, same_photo_BN=soft_targets)
    text_draws, photo_draws = (
        (None, None)
        if draws_2N is None
        else (world.select_share(draws_N) for draws_N in draws_2N.to(texts_BE.device))
    )
    negatives = (
        draw_negatives(similarities.text_to_photo, same_photo_BN, text_draws),
        draw_negatives(similarities.photo_to_text, same_photo_BN, photo_draws),
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
    """Return match logits (M, 2) of pairs that are given by the rows of their photos in `keys` and of their texts.

    Pairs are computed in groups of like length, since half of a batch that is padded to its longest text is padding.
    """
    lengths = mask_NT.sum(1)[texts_M]
    by_length = lengths.argsort()
    logits = []
    for group in by_length.chunk(LENGTH_GROUPS):
        longest = int(lengths[group[-1]])
        photo_keys = [(k[photos_M[group]], v[photos_M[group]]) for k, v in keys]
        ids, mask = ids_NT[texts_M[group], :longest], mask_NT[texts_M[group], :longest]
        logits.append(model.match(photo_keys, ids, mask, queries))
    return torch.cat(logits)[by_length.argsort()]


def caption_loss(
    model: Retriever,
    past: Sequence[KeysValues],
    ids_BT: Tensor,
    mask_BT: Tensor,
    dec_id: int,
    label_smoothing: float,
) -> Tensor:
    """Compute the captioning loss (ITG), the mean over all tokens that have a token before them.

    Every token predicts the next one. Vocabulary scores are computed only where a next token is there.
    past: keys and values of the queries, from `QFormer.read_photos`. dec_id: token that replaces [CLS].
    """
    read_BT = torch.cat([torch.full_like(ids_BT[:, :1], dec_id), ids_BT[:, 1:]], dim=1)
    hidden_BTD = model.qformer.write_texts(past, read_BT, mask_BT)
    has_next_BT = mask_BT[:, 1:]
    logits = model.caption_head(hidden_BTD[:, :-1][has_next_BT], model.qformer.words)
    return itg_loss(logits, read_BT[:, 1:][has_next_BT], label_smoothing)


def token_mean_weight(mask_BT: Tensor) -> Tensor | float:
    """Return the weight of this process's mean over predicted tokens in the mean over all processes.

    Multiplied by it, the processes' means average to the mean over all tokens, however these are shared.
    """
    return mean_weight(mask_BT[:, 1:].sum())
