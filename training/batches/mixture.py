"""Decide which of several sets gives the n-th sample of a run, so that each set has its exact share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from engine.errors import DataError

MIXTURE_PERIOD = 10_000
"""Number of samples in which every set has its exact share."""


class Mixture:
    """A schedule of the sets of a run: which set gives the n-th sample, and how many samples it gave before.

    In every 10,000 samples each set has its exact share, in an order that is drawn from (seed, number of the period).
    quota: int64 (sets,), how many samples of a period each set gives.
    """

    def __init__(self, weights: Sequence[float], seed: int):
        """Turn the weights of the sets into their quotas.

        Raise DataError for a weight that is not positive, or so small that no sample of the set would be read.
        """
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise DataError(f"The weights of the sets are {list(weights)}; each must be above 0.")
        shares = np.array(weights) / sum(weights) * MIXTURE_PERIOD
        self.quota = np.floor(shares).astype(np.int64)
        num_missing = MIXTURE_PERIOD - int(self.quota.sum())
        largest_remainders = np.argsort(self.quota - shares)[:num_missing]
        self.quota[largest_remainders] += 1
        if not self.quota.all():
            number = int(self.quota.argmin())
            raise DataError(
                f"The weight of set {number + 1} is {weights[number]}, less than 1 in {MIXTURE_PERIOD:,} of the sum of "
                "all weights: the set would not be read. Raise the weight or leave the set out."
            )
        self.seed = seed
        self._period = -1

    def __call__(self, number: int) -> tuple[int, int]:
        """Return the number of the set that gives sample `number`, and how many samples it gave before."""
        period, position = divmod(number, MIXTURE_PERIOD)
        if period != self._period:
            self._draw_period(period)
        set_number = int(self._set_numbers[position])
        num_before = int(self.quota[set_number]) * period + int(self._num_before[position])
        return set_number, num_before

    def _draw_period(self, period: int) -> None:
        """Draw the order of the sets within a period, and count how often each set came before in it."""
        in_order = np.repeat(np.arange(len(self.quota)), self.quota)
        self._set_numbers = np.random.default_rng([self.seed, period]).permutation(in_order)
        self._num_before = np.zeros(MIXTURE_PERIOD, dtype=np.int64)
        for set_number in range(len(self.quota)):
            self._num_before[self._set_numbers == set_number] = np.arange(self.quota[set_number])
        self._period = period
