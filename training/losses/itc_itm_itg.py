"""The three stage-1 objectives as pure functions (BLIP-2, section 3.2; ITC with soft targets: ALBEF).

Shapes: B pairs of this process, N pairs of all processes (N = B on one), Q queries, E embedding, T tokens,
K vocabulary. Matched pairs share their row number, shifted by `offset` in the gathered side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.blip2.retriever import itc_scores

LEAST_TEMPERATURE = 0.01


@dataclass(frozen=True)
class Similarities:
    """ITC scores divided by the temperature: photo_to_text (B, N), text_to_photo (B, N)."""

    photo_to_text: Tensor
    text_to_photo: Tensor


def itc_similarities(
    photos_BQE: Tensor, texts_BE: Tensor, all_photos_NQE: Tensor, all_texts_NE: Tensor, temperature: Tensor
) -> Similarities:
    """Every photo of this process against all texts, and every text against all photos (max over the queries).

    The temperature acts from LEAST_TEMPERATURE up (CLIP's bound, arXiv:2103.00020, section 2.5): near 0 one bad step
    would throw training off for good.
    """
    temperature = temperature.clamp(min=LEAST_TEMPERATURE)
    return Similarities(
        itc_scores(photos_BQE, all_texts_NE) / temperature,
        itc_scores(all_photos_NQE, texts_BE).T / temperature,
    )


def itc_loss(
    similarities: Similarities,
    offset: int = 0,
    label_smoothing: float = 0.1,
    same_photo_BN: Tensor | None = None,
) -> Tensor:
    """Contrastive loss, mean of both directions.

    same_photo_BN: bool, which of all pairs show the same photo (image ids, COCO fine-tuning): the targets become
    `(1 - label_smoothing)` spread over them and `label_smoothing` over all, instead of the one pair.
    """
    batch, total = similarities.photo_to_text.shape
    device = similarities.photo_to_text.device
    targets = torch.arange(offset, offset + batch, device=device)
    if same_photo_BN is None:
        smoothing = label_smoothing
    else:
        share = same_photo_BN.float() / same_photo_BN.float().sum(1, keepdim=True)
        targets, smoothing = (1 - label_smoothing) * share + label_smoothing / total, 0.0
    losses = [
        F.cross_entropy(scores, targets, label_smoothing=smoothing)
        for scores in (similarities.photo_to_text, similarities.text_to_photo)
    ]
    return (losses[0] + losses[1]) / 2


def draw_negatives(scores_BN: Tensor, positives_BN: Tensor, draws_B: Tensor | None = None) -> Tensor:
    """One hard negative a row, drawn from the softmax of the scores with the positives left out -> (B,) int64.

    A row without any negative (every pair shows the same photo) draws uniformly from all. draws: uniform numbers in
    [0, 1), one a row, that decide; fresh ones when not given.
    """
    sums_BN = negative_weights(scores_BN, positives_BN).double().cumsum(dim=1)
    if draws_B is None:
        draws_B = torch.rand(len(sums_BN), device=sums_BN.device)
    # The first whose cumulative weight is above the draw: never one of weight 0. The last sum is 1 but for rounding.
    wanted_B1 = (draws_B.to(sums_BN).unsqueeze(1) * sums_BN[:, -1:]).clamp(max=sums_BN[:, -1:] * (1 - 1e-12))
    return torch.searchsorted(sums_BN, wanted_B1, right=True)[:, 0].clamp(
        max=sums_BN.shape[1] - 1
    )  # NaN: past it


def negative_weights(scores_BN: Tensor, positives_BN: Tensor) -> Tensor:
    """The distribution that `draw_negatives` draws from: softmax over the pairs that are not positive."""
    return scores_BN.detach().float().masked_fill(positives_BN, -10000.0).softmax(dim=1)


def itm_loss(logits_M2: Tensor, num_matching: int) -> Tensor:
    """Matching loss: the first `num_matching` of M pairs match, the others do not (1 : 2 in BLIP-2)."""
    labels = torch.zeros(len(logits_M2), dtype=torch.long, device=logits_M2.device)
    labels[:num_matching] = 1
    return F.cross_entropy(logits_M2.float(), labels)


def match_distillation_loss(
    logits_M2: Tensor,
    similarities: Similarities,
    photo_for_text_B: Tensor,
    text_for_photo_B: Tensor,
    offset: int = 0,
) -> Tensor:
    """ITM learns ITC's order: over each pair and its two negatives, cross-entropy from the softmax of ITC's scores to
    that of ITM's margins (match less no match).

    Not in BLIP-2. A small Q-Former that starts from nothing stays at chance with `itm_loss` alone for hundreds of
    steps; an order to imitate says more than yes or no. logits: (3B, 2), the pairs, each text with its wrong photo,
    each photo with its wrong text, all of this process, whose first pair is number `offset` of all. Gradients reach ITM
    alone.
    """
    batch = len(photo_for_text_B)
    own = torch.arange(batch, device=logits_M2.device)
    to_text, to_photo = similarities.photo_to_text.detach(), similarities.text_to_photo.detach()
    scores_B3 = torch.stack(
        [to_text[own, own + offset], to_photo[own, photo_for_text_B], to_text[own, text_for_photo_B]], dim=1
    )
    margins_B3 = (logits_M2[:, 1] - logits_M2[:, 0]).float().view(3, batch).T
    return F.cross_entropy(margins_B3, scores_B3.softmax(dim=1))


def itg_loss(logits_MK: Tensor, targets_M: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """Captioning loss: mean over all tokens to be predicted, M of them in the batch. targets: their ids."""
    return F.cross_entropy(logits_MK.float(), targets_M, label_smoothing=label_smoothing)
