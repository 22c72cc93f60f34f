"""Number the photos of several sets from 0 on, and read each when it is asked for.

The sets are tars, JSON files and folders, named as `captioned_sets.open_set` takes them. Of a tar only the
headers are read to begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.captioned_sets import ListedPictures, open_set
from engine.datasets.tar_shards import TarShard
from engine.errors import DataError


class PhotoSets:
    """The photos of some sets, one after the other. names: of their parts; ends: where the next one begins."""

    def __init__(self, names: Sequence[str], *folders: Path):
        """folders: see `captioned_sets.place_of`. Raises DataError for a set that is not there, broken or empty."""
        if not names:
            raise DataError("There are no photos to caption: the recipe's `pictures` is empty.")
        self.parts: list[TarShard | ListedPictures] = []
        self.names: list[str] = []
        for name in names:
            opened = open_set(name, *folders)
            opened.check_whole()
            for part, file_name in zip(opened.parts, opened.names, strict=True):
                if not part.count:
                    raise DataError(f"{name} holds no photo.")
                self.parts.append(part)
                self.names.append(file_name if isinstance(part, TarShard) else name)
        self.ends = list(accumulate(part.count for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: int) -> CaptionedPicture:
        """Raises DataError for one that cannot be read, IndexError beyond the last."""
        place = int(np.searchsorted(self.ends, number, side="right"))
        return self.parts[place].read_picture(number - (self.ends[place - 1] if place else 0))

    def list_counts(self) -> list[str]:
        """What decides which photo has which number."""
        return [f"{name}: {part.count}" for name, part in zip(self.names, self.parts, strict=True)]
