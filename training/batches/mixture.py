"""Decide which of several sets gives the n-th sample of a run, so that each set has its exact share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from engine.errors import DataError

MIXTURE_PERIOD = 10_000
"""Samples after which every source has given its exact share."""


class Mixture:
    """Which source gives the n-th sample of a run, and how many it gave before.

    In every 10,000 samples each source has its exact share, in an order drawn from (seed, period).
    """

    def __init__(self, weights: Sequence[float], seed: int):
        """Raises DataError for a weight that is not positive, or so small that the source would never be read."""
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise DataError(f"The sources' weights are {list(weights)}; each must be above 0.")
        shares = np.array(weights) / sum(weights) * MIXTURE_PERIOD
        self.quota = np.floor(shares).astype(np.int64)
        self.quota[np.argsort(self.quota - shares)[: MIXTURE_PERIOD - int(self.quota.sum())]] += (
            1  # largest remainders
        )
        if not self.quota.all():
            number = int(self.quota.argmin())
            raise DataError(
                f"The weight of source {number + 1} is {weights[number]}, less than 1 in "
                f"{MIXTURE_PERIOD:,} of their sum: it would not be read; raise it or leave the source out."
            )
        self.seed = seed
        self._period = -1

    def __call__(self, number: int) -> tuple[int, int]:
        """-> (source, how many samples of it came before)."""
        period, place = divmod(number, MIXTURE_PERIOD)
        if period != self._period:
            slots = np.repeat(np.arange(len(self.quota)), self.quota)
            self._slots = np.random.default_rng([self.seed, period]).permutation(slots)
            before = np.zeros(MIXTURE_PERIOD, dtype=np.int64)
            for source in range(len(self.quota)):
                own = self._slots == source
                before[own] = np.arange(self.quota[source])
            self._before, self._period = before, period
        source = int(self._slots[place])
        return source, int(self.quota[source]) * period + int(self._before[place])
