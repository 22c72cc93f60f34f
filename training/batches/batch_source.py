"""The batch of a training step, in the form that every training task reads.

`picture_stream.PictureStream` makes batches of pictures that it reads and crops in every step.
`encoded_views.EncodedViews` makes batches of patches that a frozen encoder computed before training.
Shapes: B pairs of this process, P patches, V vision width, C channels, H W pixels or positions of a feature map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The pairs of a step that belong to this process.

    images: uint8 pictures (B, H, W, 3), bfloat16 patches (B, P, V), or bfloat16 feature maps (B, H, W, C).
    captions: one for each image. picture_ids: (B,) int64, equal for pairs of the same picture.
    questions: the question that each caption answers, "" where there is none.
    draws: generator of the random numbers that all processes draw alike in this step, after the batch itself has taken
    what it needed. With None the step draws from torch's global generator. The captions are then drawn one by one while
    they are iterated, so that what a task draws for a pair comes right after the pair's caption.
    """

    images: np.ndarray | Tensor
    captions: Iterable[str]
    picture_ids: np.ndarray
    questions: list[str]
    draws: torch.Generator | None


class BatchSource(Protocol):
    """Batches by the number of a step. A step has the same batch in every run, so that a stopped run can go on."""

    def __getitem__(self, step: int) -> Batch: ...

    def settings(self) -> Mapping[str, Any]:
        """Return the values, by name, that must be unchanged when a stopped run goes on."""
        ...
