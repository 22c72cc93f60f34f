"""Let a model learn the mean scores of trained models on photos and captions that do not belong to each other.

The scores of several models, added up, rank better than those of each. On photos without captions none of them has
learned the answers by heart, so that their mean is a target (distillation, arXiv:1503.02531) that says more than names.

Shapes: N photos of a set, B photos of a step, Q queries, E embedding, T captions, M captions of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.blip2.retriever import Retriever, itc_scores
from engine.blip2.wordpiece import TextTokenizer
from training.losses.itc_itm_itg import LEAST_TEMPERATURE
from training.losses.pooled_texts import PooledTexts
from training.losses.stage1_losses import apply_vision_norm

PHOTOS_AT_ONCE = 100


@dataclass(frozen=True)
class TeacherVectors:
    """The answers of one teacher, unit vectors in float16.

    photos: (N, Q, E) of each set. captions: (T, E). temperature: the number by which its scores are divided.
    """

    photos: Sequence[Tensor]
    captions: Tensor
    temperature: float


@torch.no_grad()
def read_teacher(
    net: Retriever, tokenizer: TextTokenizer, sets: Sequence[Tensor], captions: Sequence[str]
) -> TeacherVectors:
    """Encode the first view of every photo of the sets (N, W, P, V), and captions, with a trained network."""
    net.eval()
    photos = [encode_first_views(net, patches).half() for patches in sets]
    texts = net.project_texts(PooledTexts(net, tokenizer).read(captions)).half()
    return TeacherVectors(photos, texts, max(LEAST_TEMPERATURE, float(net.temperature)))


@torch.no_grad()
def encode_first_views(net: Retriever, patches_NWPV: Tensor) -> Tensor:
    """Return the unit vectors (N, Q, E) float32 of photos by the first of their views, on the CPU."""
    parts = [
        net.encode_photos(
            net.compute_photo_keys(apply_vision_norm(net, part[:, 0].to(net.temperature.device)))
        )
        for part in patches_NWPV.split(PHOTOS_AT_ONCE)
    ]
    return torch.cat([part.cpu() for part in parts])


def mean_scores(
    teachers: Sequence[TeacherVectors], set_numbers: Sequence[int], rows: Sequence[int], captions_M: Tensor
) -> Tensor:
    """Return the mean of the teachers' scores over their temperatures (B, M) float32.

    set_numbers, rows: the set of each photo and its number there. captions: numbers of captions.
    """
    scores = []
    for teacher in teachers:
        photos = torch.stack(
            [teacher.photos[number][row] for number, row in zip(set_numbers, rows, strict=True)]
        )
        cosines = itc_scores(photos.float(), teacher.captions[captions_M].float())
        scores.append(cosines / teacher.temperature)
    return torch.stack(scores).mean(dim=0)


def ranking_loss(scores_BM: Tensor, targets_BM: Tensor) -> Tensor:
    """Compute the cross-entropy from the softmax of target scores to that of scores, the mean of both directions."""
    losses = [-(targets_BM.softmax(dim) * scores_BM.log_softmax(dim)).sum(dim).mean() for dim in (0, 1)]
    return (losses[0] + losses[1]) / 2
