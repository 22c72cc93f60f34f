"""Compute the loss by which photos learn the names of things from a classifier's probabilities.

The classifier of a published image encoder knows 1,000 classes. What it says of a photo is a target for the
similarities of the photo to the names of the classes: knowledge distillation (arXiv:1503.02531) in which the names are
texts, as in CLIP's zero-shot classifier (arXiv:2103.00020, section 3.1). The photos need neither captions nor labels.

Shapes: B photos, Q queries, E embedding, N names, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.blip2.retriever import itc_scores
from training.losses.itc_itm_itg import LEAST_TEMPERATURE


def names_loss(photos_BQE: Tensor, names_NE: Tensor, probabilities_BN: Tensor, temperature: Tensor) -> Tensor:
    """Compute the cross-entropy from probabilities of names to the softmax of ITC's scores over the temperature."""
    scores_BN = itc_scores(photos_BQE, names_NE) / temperature.clamp(min=LEAST_TEMPERATURE)
    return -(probabilities_BN * scores_BN.log_softmax(dim=1)).sum(dim=1).mean()


def merge_classes(probabilities_BC: Tensor, name_of_class_C: Tensor, num_names: int) -> Tensor:
    """Add up the probabilities of classes that go by one name -> (B, N).

    name_of_class: int64, the number of the name of each class.
    """
    merged_BN = torch.zeros(len(probabilities_BC), num_names, dtype=probabilities_BC.dtype)
    return merged_BN.index_add(1, name_of_class_C, probabilities_BC)
