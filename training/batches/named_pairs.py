"""Add photos without captions to a batch: their captions are the names that a classifier is sure of.

Such pairs keep names in a run with all losses: ITM learns to match them, and ITG to write them ("a church").

Shapes: B pairs, P patches, V vision width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import DataError
from training.batches.batch_source import Batch
from training.batches.class_names import ClassNames
from training.batches.encoded_views import EncodedViews
from training.batches.named_pictures import Classifier
from training.distributed.world import current_world

PHOTOS_AT_ONCE = 256


class NamedPairs:
    """The batches of a captioned source, each with `count` pairs of a photo and its name behind the captioned ones."""

    def __init__(
        self,
        source: EncodedViews,
        sets: Sequence[Tensor],
        shares: Sequence[float],
        names: Sequence[str],
        classifier: Classifier,
        count: int,
        least: float,
    ):
        """Name the photos of all sets whose likeliest class has a probability of `least` or more.

        sets: patches (N, W, P, V) of each set; the class is that of the first view. shares: how often each set is
        drawn, in proportion to the others. names: of the sets, for messages. Raises DataError when the classifier is
        sure of no photo.
        """
        self.source, self.sets, self.count = source, sets, count
        self.class_names, self.shares = ClassNames(), torch.tensor(shares)
        self.sure, self.classes = [], []
        for patches in sets:
            probabilities_NC = torch.cat(
                [classifier.classify(part[:, 0]) for part in patches.split(PHOTOS_AT_ONCE)]
            )
            likeliest = probabilities_NC.max(dim=1)
            self.sure.append((likeliest.values >= least).nonzero()[:, 0].tolist())
            self.classes.append(likeliest.indices.tolist())
        self.shares = self.shares * torch.tensor([float(bool(sure)) for sure in self.sure])
        if not bool(self.shares.any()):
            raise DataError(
                f"The classifier is sure of no photo of the sets {', '.join(names)}: no class has a probability of "
                f"{least:g} or more. Set names.least lower."
            )

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step."""
        batch, world = self.source[step], current_world()
        draws = batch.draws
        assert draws is not None and isinstance(batch.images, Tensor), "a batch of encoded views draws alike"
        set_numbers = torch.multinomial(self.shares, self.count, replacement=True, generator=draws)
        places = torch.rand(2, self.count, generator=draws)
        texts, text_numbers = self.class_names.draw_texts(draws)
        images, captions, picture_ids = [], [], []
        for number in world.select_share(torch.arange(self.count)).tolist():
            set_number, (photo, view) = int(set_numbers[number]), places[:, number].tolist()
            sure, patches = self.sure[set_number], self.sets[set_number]
            row = sure[int(photo * len(sure))]
            label = self.classes[set_number][row]
            images.append(patches[row, int(view * patches.shape[1])])
            captions.append(texts[int(text_numbers[label])])
            # Photos of one class are never each other's negatives.
            picture_ids.append(-1 - label)
        return Batch(
            torch.cat([batch.images, torch.stack(images)]),
            chain(batch.captions, captions),
            np.concatenate([batch.picture_ids, np.array(picture_ids, dtype=np.int64)]),
            [*batch.questions, *[""] * len(captions)],
            draws,
        )

    def settings(self) -> Mapping[str, Any]:
        """Return the values that must be unchanged when a stopped run goes on."""
        return {**self.source.settings(), "named": sum(map(len, self.sure))}
