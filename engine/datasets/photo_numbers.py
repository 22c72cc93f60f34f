"""Number the photos of several sets from 0 on, and read each when it is asked for.

The sets are tars, JSON files and folders, named as `captioned_sets.read_small_sets` takes them. Of a tar only the
headers are read to begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.captioned_sets import place_of, read_small_sets
from engine.datasets.tar_shards import TarShard, find_shards
from engine.errors import DataError


class PhotoSets:
    """The photos of some sets, one after the other. names: of their parts; ends: where the next one begins."""

    def __init__(self, names: Sequence[str], *folders: Path):
        """folders: see `captioned_sets.place_of`. Raises DataError for a set that is not there, broken or empty."""
        if not names:
            raise DataError("There are no photos to caption: the recipe's `pictures` is empty.")
        self.parts: list[TarShard | list[CaptionedPicture]] = []
        self.names: list[str] = []
        for name in names:
            folder, below = place_of(name, folders)
            path = folder / below
            if path.suffix == ".json" or path.is_dir():
                self._add(name, read_small_sets([name], *folders))
            else:
                for shard in find_shards([below], folder):
                    self._add(shard.name, TarShard(shard))
        self.ends = list(accumulate(_count(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: int) -> CaptionedPicture:
        """Raises DataError for one that cannot be read, IndexError beyond the last."""
        place = int(np.searchsorted(self.ends, number, side="right"))
        part, row = self.parts[place], number - (self.ends[place - 1] if place else 0)
        return part.read(row).pair if isinstance(part, TarShard) else part[row]

    def facts(self) -> list[str]:
        """What decides which photo has which number."""
        return [f"{name}: {_count(part)}" for name, part in zip(self.names, self.parts, strict=True)]

    def _add(self, name: str, part: TarShard | list[CaptionedPicture]) -> None:
        if not _count(part):
            raise DataError(f"{name} holds no photo.")
        self.parts.append(part)
        self.names.append(name)


def _count(part: TarShard | list[CaptionedPicture]) -> int:
    return part.count if isinstance(part, TarShard) else len(part)
