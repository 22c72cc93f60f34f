"""The three losses of stage 1 as pure functions (BLIP-2, section 3.2; soft targets of ITC: ALBEF).

ITC contrasts photos with texts, ITM tells matching pairs from others, ITG predicts the tokens of captions.

Shapes: B pairs of this process, N pairs of all processes (N = B for one process), M pairs or tokens to classify,
Q queries, E embedding, K vocabulary. Pair b of this process is pair b + `offset` of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.blip2.retriever import itc_scores

LEAST_TEMPERATURE = 0.01
"""Smallest temperature that ITC's scores are divided by (CLIP's bound, arXiv:2103.00020, section 2.5)."""


@dataclass(frozen=True)
class Similarities:
    """ITC's scores divided by the temperature, (B, N) in each direction.

    photo_to_text: this process's photos against all texts. text_to_photo: this process's texts against all photos.
    """

    photo_to_text: Tensor
    text_to_photo: Tensor


def itc_similarities(
    photos_BQE: Tensor, texts_BE: Tensor, all_photos_NQE: Tensor, all_texts_NE: Tensor, temperature: Tensor
) -> Similarities:
    """Compare every photo of this process with all texts, and every text with all photos (maximum over the queries).

    A temperature below LEAST_TEMPERATURE is raised to it: near 0 a single bad step would spoil the training for good.
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
    """Compute the contrastive loss, the mean of both directions.

    offset: number of this process's first pair among all. same_photo_BN: bool, which of all pairs show the same photo
    (by image ids, when COCO is fine-tuned on). With it the target is not the pair alone: `1 - label_smoothing` is
    spread over the pairs of the same photo, and `label_smoothing` over all.
    """
    num_pairs, num_all = similarities.photo_to_text.shape
    device = similarities.photo_to_text.device
    targets = torch.arange(offset, offset + num_pairs, device=device)
    if same_photo_BN is None:
        smoothing = label_smoothing
    else:
        share = same_photo_BN.float() / same_photo_BN.float().sum(1, keepdim=True)
        targets, smoothing = (1 - label_smoothing) * share + label_smoothing / num_all, 0.0
    losses = [
        F.cross_entropy(scores, targets, label_smoothing=smoothing)
        for scores in (similarities.photo_to_text, similarities.text_to_photo)
    ]
    return (losses[0] + losses[1]) / 2


def draw_negatives(scores_BN: Tensor, positives_BN: Tensor, draws_B: Tensor | None = None) -> Tensor:
    """Draw a hard negative for each row -> (B,) int64, by the softmax of its scores without the positives.

    A row without any negative (every pair shows the same photo) draws uniformly from all. draws: uniform numbers in
    [0, 1) that decide, one for each row; by default fresh ones.
    """
    sums_BN = negative_weights(scores_BN, positives_BN).double().cumsum(dim=1)
    if draws_B is None:
        draws_B = torch.rand(len(sums_BN), device=sums_BN.device)
    # A negative is the first whose cumulative weight is above the draw, so its weight is never 0. The last sum is 1
    # but for rounding.
    sought_B1 = (draws_B.to(sums_BN).unsqueeze(1) * sums_BN[:, -1:]).clamp(max=sums_BN[:, -1:] * (1 - 1e-12))
    negatives_B = torch.searchsorted(sums_BN, sought_B1, right=True)[:, 0]
    # Scores that are NaN lead past the last one.
    return negatives_B.clamp(max=sums_BN.shape[1] - 1)


def negative_weights(scores_BN: Tensor, positives_BN: Tensor) -> Tensor:
    """Return the probabilities (B, N) by which `draw_negatives` draws: the softmax over pairs that are not positive."""
    return scores_BN.detach().float().masked_fill(positives_BN, -10000.0).softmax(dim=1)


def itm_loss(logits_M2: Tensor, num_matching: int) -> Tensor:
    """Compute the matching loss of M pairs, of which the first `num_matching` match (1 of 3 in BLIP-2)."""
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
    """Compute a loss by which ITM learns the order in which ITC ranks each pair and its two negatives.

    Over these three it is the cross-entropy from the softmax of ITC's scores to that of ITM's margins, where a margin
    is the logit of a match less the logit of no match. Gradients reach ITM alone.

    This loss is not in BLIP-2. A small Q-Former that starts from random weights stays at chance with `itm_loss` alone
    for hundreds of steps; an order to imitate says more than yes or no.

    logits: (3B, 2) of this process: the pairs, then each text with its wrong photo, then each photo with its wrong
    text. photo_for_text, text_for_photo: the numbers of these negatives among all N pairs. offset: number of this
    process's first pair among all.
    """
    scores_B3 = select_scores(similarities, photo_for_text_B, text_for_photo_B, offset)
    margins_B3 = (logits_M2[:, 1] - logits_M2[:, 0]).float().view(3, len(scores_B3)).T
    return F.cross_entropy(margins_B3, scores_B3.softmax(dim=1))


def add_itc_scores(
    logits_M2: Tensor,
    similarities: Similarities,
    photo_for_text_B: Tensor,
    text_for_photo_B: Tensor,
    offset: int = 0,
) -> Tensor:
    """Add ITC's scores over the temperature to the match logits, for an ITM that learns what ITC gets wrong.

    BLIP-2 ranks by the sum of both (section 4.4). With `itm_loss` of the sum the head begins where ITC is, and need not
    learn first what ITC knows already. Gradients reach ITM alone. Parameters: as in `match_distillation_loss`.
    """
    scores_M = select_scores(similarities, photo_for_text_B, text_for_photo_B, offset).T.flatten()
    return torch.stack([logits_M2[:, 0].float(), logits_M2[:, 1].float() + scores_M], dim=1)


def select_scores(
    similarities: Similarities, photo_for_text_B: Tensor, text_for_photo_B: Tensor, offset: int
) -> Tensor:
    """Return ITC's scores (B, 3) of each pair and its two negatives, without gradient."""
    rows = torch.arange(len(photo_for_text_B), device=photo_for_text_B.device)
    to_text, to_photo = similarities.photo_to_text.detach(), similarities.text_to_photo.detach()
    return torch.stack(
        [to_text[rows, rows + offset], to_photo[rows, photo_for_text_B], to_text[rows, text_for_photo_B]],
        dim=1,
    )


def itg_loss(logits_MK: Tensor, targets_M: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """Compute the captioning loss, the mean over the M tokens of a batch that are predicted. targets: their ids."""
    return F.cross_entropy(logits_MK.float(), targets_M, label_smoothing=label_smoothing)
