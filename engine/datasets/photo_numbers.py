"""Number the photos of several sets from 0 on, and read each when it is asked for.

The sets are tars, JSON files and folders, named as `captioned_sets.open_set` takes them. At the beginning only the
headers of a tar are read.
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
    """The photos of several sets in one sequence.

    parts: the tar shards, JSON files and folders of the sets, in order.
    names: a name for each part: a shard's file name, or the name under which the set was given.
    ends: for each part the number of its last photo + 1.
    """

    def __init__(self, names: Sequence[str], *folders: Path):
        """Open the sets, each in the first of the folders that holds it (`captioned_sets.find_set_folder`).

        Raise DataError for a set that is missing, broken or empty, and where no set is named.
        """
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
        """Read a photo by its number. Raise DataError for one that cannot be read, IndexError beyond the last."""
        index = int(np.searchsorted(self.ends, number, side="right"))
        return self.parts[index].read_picture(number - (self.ends[index - 1] if index else 0))

    def list_counts(self) -> list[str]:
        """List each part with its number of photos ("a.tar: 12"); together they decide which photo has which number."""
        return [f"{name}: {part.count}" for name, part in zip(self.names, self.parts, strict=True)]
