"""The batch of a training step, in the one form that every task reads.

There are two ways to make it. `picture_stream.Stream` reads and crops pictures as they are needed.
`encoded_views.EncodedViews` holds what a frozen encoder made of all pictures before training.
Shapes: B pairs of this process, P patches, V vision width, C channels, H W pixels or places of a feature map.
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
    """The pairs of one step that belong to this process.

    images: uint8 pictures (B, H, W, 3), or bfloat16 patches (B, P, V), or feature maps (B, H, W, C). captions: one for
    each image. picture_ids: (B,) int64, equal for the same photo. questions: what the captions answer, empty where
    nothing is asked. draws: gives the random numbers of this step that all processes draw alike, and has already given
    those that the source needed. It is None where the step draws from torch's own generator; the captions are then
    drawn one by one while they are read, so that what a task draws for a pair comes right after the pair's caption.
    """

    images: np.ndarray | Tensor
    captions: Iterable[str]
    picture_ids: np.ndarray
    questions: list[str]
    draws: torch.Generator | None


class BatchSource(Protocol):
    """Batches by step: the same step gives the same batch, in a resumed run too."""

    def __getitem__(self, step: int) -> Batch: ...

    def settings(self) -> Mapping[str, Any]:
        """Return what a resumed run must find again, by name."""
        ...
