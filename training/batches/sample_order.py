"""Compute which sample of a set a run reads at each position, from the seed and the position alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from engine.datasets.captioned_pictures import Sample
from engine.datasets.captioned_sets import TrainingSet
from training.loop.optimizer import OptimConfig


class SampleOrder:
    """The order in which a run reads the samples of a set, a function of the seed and the position alone.

    Every epoch takes the shards in a new order, `shards_at_once` of them at a time, and shuffles the samples of these
    shards, so that reads stay within few files.
    """

    def __init__(self, training_set: TrainingSet, seed: Sequence[int], shards_at_once: int = 8):
        """Prepare the order of a set. seed: whole numbers that a NumPy generator is seeded with."""
        self.training_set, self.seed, self.shards_at_once = training_set, seed, shards_at_once
        self._first_ids = [0, *accumulate(shard.count for shard in training_set.shards)]
        self._epoch = -1
        # For the epoch of the last call: the shards' numbers in each group, and the samples up to each group's end.
        self._groups: list[list[int]] = []
        self._group_ends: list[int] = []
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, position: int) -> Callable[[], Sample]:
        """Return a function that reads the sample at a position; it may run in another thread and raise DataError.

        position: number of the sample in the run, from 0; more than one epoch is allowed.
        """
        epoch, position_in_epoch = divmod(position, self.training_set.count)
        if epoch != self._epoch:
            self._begin_epoch(epoch)
        group = int(np.searchsorted(self._group_ends, position_in_epoch, side="right"))
        first_position = self._group_ends[group - 1] if group else 0
        row = int(self._shuffle_group(epoch, group)[position_in_epoch - first_position])
        for number in self._groups[group]:
            count = self.training_set.shards[number].count
            if row < count:
                break
            row -= count
        shard, first_id = self.training_set.shards[number], self._first_ids[number]

        def read_sample() -> Sample:
            sample = shard.read_sample(row)
            return replace(sample, picture_id=first_id + sample.picture_id)

        return read_sample

    def _begin_epoch(self, epoch: int) -> None:
        """Draw the order of the shards in an epoch and put them into groups that are shuffled as one."""
        shards = self.training_set.shards
        order = np.random.default_rng([*self.seed, epoch]).permutation(len(shards)).tolist()
        self._groups = [order[i : i + self.shards_at_once] for i in range(0, len(order), self.shards_at_once)]
        self._group_ends = list(accumulate(sum(shards[n].count for n in group) for group in self._groups))
        self._epoch, self._permutations = epoch, {}

    def _shuffle_group(self, epoch: int, group: int) -> np.ndarray:
        """Return a random order of the samples of a group; the last two groups that were asked for are remembered."""
        if (epoch, group) not in self._permutations:
            count = sum(self.training_set.shards[number].count for number in self._groups[group])
            if len(self._permutations) > 1:
                self._permutations = {}
            draws = np.random.default_rng([*self.seed, epoch, group])
            self._permutations[epoch, group] = draws.permutation(count)
        return self._permutations[epoch, group]


def choose_batch(step: int, num_samples: int, optim: OptimConfig) -> Tensor:
    """Return the numbers of the samples in a step's batch, int64 (batch,).

    Every epoch is a new random order in which a sample comes once at most; the samples at its end that do not fill a
    batch are left out.
    """
    epoch, batch_number = divmod(step, num_samples // optim.batch)
    draws = torch.Generator().manual_seed((optim.seed << 20) + epoch)
    order = torch.randperm(num_samples, generator=draws)
    return order[batch_number * optim.batch : (batch_number + 1) * optim.batch]
