"""Photos of any sets by number, read when they are asked for; and tar shards of captioned photos, written whole.

Tars, JSON files and folders as `sources.read_small_sets` takes them. Of tars only the headers are read to begin with.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from engine.errors import DataError
from engine.pictures.formats import SHARD_SUFFIX_BY_FIRST_BYTES
from engine.pictures.opening import open_picture
from training.data import CaptionedPicture, find_shards
from training.sources import TarShard, place_of, read_small_sets


class PhotoSets:
    """The photos of some sets, one after the other. names: of their parts; ends: where the next one begins."""

    def __init__(self, names: Sequence[str], *folders: Path):
        """folders: see `sources.place_of`. Raises DataError for a set that is not there, broken or empty."""
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


def write_captioned(path: Path, rows: Iterable[tuple[CaptionedPicture, Mapping[str, Any]]]) -> None:
    """A tar of `key.<picture>` + `key.json`, as `data.read_shards` reads it; there whole or not at all.

    rows: each photo with what its JSON says. The pictures are the files' own bytes where shards have a suffix for them,
    else JPEG. The same rows give the same bytes.
    """
    used: set[str] = set()
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as file, webdataset.TarWriter(file, mtime=0, format="PAX_FORMAT") as tar:
        for picture, facts in rows:
            stem = re.sub(r"[^\w-]+", "_", picture.key.removesuffix(Path(picture.key).suffix))
            key = next(one for one in (stem, *(f"{stem}-{n}" for n in range(len(used)))) if one not in used)
            used.add(key)
            suffix, content = _picture_file(picture)
            tar.write({"__key__": key, suffix: content, "json": json.dumps(facts).encode()})
    os.replace(temporary, path)


def _picture_file(picture: CaptionedPicture) -> tuple[str, bytes]:
    content = picture.picture if isinstance(picture.picture, bytes) else picture.picture.read_bytes()
    for start, suffix in SHARD_SUFFIX_BY_FIRST_BYTES.items():
        if content.startswith(start):
            return suffix, content
    file = io.BytesIO()
    opened: Image.Image = open_picture(picture.picture)
    opened.save(file, "JPEG", quality=95)
    return "jpg", file.getvalue()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """There whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
