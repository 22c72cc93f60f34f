"""Random numbers for one pair after another, from rows that all processes know or from torch's own generator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch


class PairDraws(Protocol):
    """The random numbers of a pair, in the order in which they are asked for."""

    def draw_integer(self, count: int) -> int:
        """Draw a whole number from 0 to count - 1."""
        ...

    def draw_fraction(self) -> float:
        """Draw a number from 0 up to, but not including, 1."""
        ...


class RowDraws:
    """Random numbers that are taken from a row of uniform numbers in [0, 1), from its beginning."""

    def __init__(self, numbers: Iterable[float]):
        self._numbers = iter(numbers)

    def draw_integer(self, count: int) -> int:
        return int(next(self._numbers) * count)

    def draw_fraction(self) -> float:
        return next(self._numbers)


class TorchDraws:
    """Random numbers from torch's global generator."""

    def draw_integer(self, count: int) -> int:
        return int(torch.randint(count, ()))

    def draw_fraction(self) -> float:
        return float(torch.rand(()))
