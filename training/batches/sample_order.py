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
    """Which sample of a source is the i-th that a run reads, computed from the seed and i alone.

    Every epoch takes the shards in another order, some of them at a time, and mixes the samples of those: reads stay
    within few files.
    """

    def __init__(self, source: TrainingSet, seed: Sequence[int], shards_at_once: int = 8):
        self.source, self.seed, self.shards_at_once = source, seed, shards_at_once
        self._first = [0, *accumulate(shard.count for shard in source.shards)]
        self._kept: dict[tuple[int, int], tuple[list[int], np.ndarray]] = {}
        self._groups: tuple[int, list[list[int]], list[int]] = (-1, [], [])

    def __call__(self, position: int) -> Callable[[], Sample]:
        """A reader of that sample, for a thread of its own; it may raise DataError."""
        epoch, place = divmod(position, self.source.count)
        group, offset = self._group_of(epoch, place)
        shards, order = self._mixed(epoch, group)
        row = int(order[offset])
        for number in shards:
            count = self.source.shards[number].count
            if row < count:
                break
            row -= count
        shard, first = self.source.shards[number], self._first[number]

        def read() -> Sample:
            sample = shard.read_sample(row)
            return replace(sample, picture_id=first + sample.picture_id)

        return read

    def _group_of(self, epoch: int, place: int) -> tuple[int, int]:
        if self._groups[0] != epoch:
            order = np.random.default_rng([*self.seed, epoch]).permutation(len(self.source.shards)).tolist()
            groups = [order[i : i + self.shards_at_once] for i in range(0, len(order), self.shards_at_once)]
            ends = list(accumulate(sum(self.source.shards[n].count for n in group) for group in groups))
            self._groups, self._kept = (epoch, groups, ends), {}
        ends = self._groups[2]
        group = int(np.searchsorted(ends, place, side="right"))
        return group, place - (ends[group - 1] if group else 0)

    def _mixed(self, epoch: int, group: int) -> tuple[list[int], np.ndarray]:
        if (epoch, group) not in self._kept:
            shards = self._groups[1][group]
            count = sum(self.source.shards[n].count for n in shards)
            if len(self._kept) > 1:
                self._kept = {}
            self._kept[epoch, group] = (
                shards,
                np.random.default_rng([*self.seed, epoch, group]).permutation(count),
            )
        return self._kept[epoch, group]


def choose_batch(step: int, num_samples: int, optim: OptimConfig) -> Tensor:
    """Numbers of a step's samples: each once an epoch, what does not fill a batch left out."""
    epoch, number = divmod(step, num_samples // optim.batch)
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed((optim.seed << 20) + epoch))
    return order[number * optim.batch : (number + 1) * optim.batch]
