"""Open sets of captioned pictures: tar shards, ALBEF/LAVIS or Karpathy JSON, a picture folder with metadata.

A `Source` is an opened set. It is a row of shards, each with a known count and random access, so that the sample at
any position of a run can be computed and nothing has to be read again to resume. A JSON file or a folder is one shard
and each of its captions is a sample. In tars each picture is a sample, and one of its captions is drawn each time.
`read_small_sets` reads sets that fit into memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from engine.datasets.caption_files import read_annotations
from engine.datasets.captioned_pictures import CaptionedPicture, Sample
from engine.datasets.picture_folders import read_picture_folder
from engine.datasets.tar_shards import TarShard, find_shards, read_shards
from engine.errors import DataError
from engine.types import Failure


@dataclass(frozen=True)
class SetConfig:
    """One set to learn from. path: below the data folder. weight: its share of the samples, beside those of the others.
    images: folder of a JSON file's pictures, the file's own when empty."""

    path: str
    weight: float = 1.0
    images: str = ""


@dataclass(frozen=True)
class SourceConfig(SetConfig):
    """A set of captioned pictures.

    path: tar shards by a pattern ("cc3m-*.tar", "laion-{00000..12933}.tar"), a .json file (ALBEF/LAVIS or Karpathy), or
    a folder with metadata.jsonl or metadata.csv. split: of a Karpathy file.
    """

    split: str = "train"


def place_of(name: str, folders: Sequence[Path]) -> tuple[Path, str]:
    """-> the first of the folders that holds such a set, and the name below it; the first of all when none does."""
    if Path(name).is_absolute():
        anchor = Path(name).anchor
        return Path(anchor), str(Path(name).relative_to(anchor))
    pattern = re.sub(r"\{.*\}", "*", name)
    found = (one for one in folders if (one / name).exists() or next(iter(one.glob(pattern)), None))
    return next(found, folders[0]), name


def read_small_sets(names: Sequence[str], *folders: Path) -> list[CaptionedPicture]:
    """Every picture of sets that fit in memory, with all of its captions.

    names, below the first of the folders that has one: tar shards by a pattern, a JSON file (ALBEF/LAVIS, or Karpathy's
    training split) with its pictures in the same folder, or a folder with metadata. Raises DataError for one that
    cannot be read.
    """
    pictures: list[CaptionedPicture] = []
    for data, name in (place_of(name, folders) for name in names):
        path = data / name
        if path.suffix == ".json":
            pictures += read_annotations(path, path.parent, "train").pictures
        elif path.is_dir():
            pictures += read_picture_folder(path)[0]
        else:
            pictures += read_shards(find_shards([name], data))
    return pictures


class ListShard:
    """Pairs of a JSON file or folder, held in memory: every caption is a sample of its own."""

    def __init__(self, pictures: Sequence[CaptionedPicture]):
        self.pictures = pictures
        ends = np.cumsum([len(p.captions) for p in pictures], dtype=np.int64)
        self.ends, self.count = ends, int(ends[-1]) if len(ends) else 0

    def read(self, row: int) -> Sample:
        number = int(np.searchsorted(self.ends, row, side="right"))
        picture = self.pictures[number]
        caption = picture.captions[row - int(self.ends[number])]  # counts from the last one back: each once
        return Sample(CaptionedPicture(picture.key, picture.picture, (caption,)), number)


class Shard(Protocol):
    """Samples with random access."""

    @property
    def count(self) -> int: ...

    def read(self, row: int) -> Sample: ...


@dataclass
class Source:
    """An opened source. missing: how many samples were left out from the start, by reason. broken: shards left out."""

    config: SetConfig
    shards: list[Shard]
    names: list[str]
    broken: list[Failure] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(shard.count for shard in self.shards)

    def digest(self) -> str:
        """Of the shards' names and counts: what decides which sample lies where."""
        facts = [[name, shard.count] for name, shard in zip(self.names, self.shards, strict=True)]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def open_source(config: SourceConfig, data: Path, threads: int = 8) -> Source:
    """Look through a source's shards and count. Broken ones are left out and named in `broken`.

    Raises DataError when nothing of it can be read.
    """
    path = data / config.path
    if path.suffix == ".json":
        found = read_annotations(path, data / config.images if config.images else path.parent, config.split)
        return _listed(config, path, found.pictures, found.missing)
    if path.is_dir():
        return _listed(config, path, *read_picture_folder(path))
    anchor = Path(path.anchor) if Path(config.path).is_absolute() else data
    paths = find_shards([str(path.relative_to(anchor))], anchor, missing_ok=True)
    with ThreadPoolExecutor(threads) as pool:
        opened = list(pool.map(_opened, paths))
    source = Source(config, [], [])
    for place, shard in zip(paths, opened, strict=True):
        if isinstance(shard, Failure):
            source.broken.append(shard)
        else:
            source.shards.append(shard)
            source.names.append(place.name)
    if not source.shards:
        raise DataError(
            f"None of the {len(paths)} shards of {config.path} can be read: {source.broken[0].reason}"
        )
    return source


def _opened(path: Path) -> TarShard | Failure:
    try:
        return TarShard(path)
    except DataError as error:
        return Failure(path, str(error))


def _listed(
    config: SourceConfig, path: Path, pictures: Sequence[CaptionedPicture], missing: Sequence[str]
) -> Source:
    captioned = [picture for picture in pictures if picture.captions]
    if not captioned:
        raise DataError(f"{path}: none of its {len(pictures)} pictures has a caption.")
    source = Source(config, [ListShard(captioned)], [path.name])
    left_out = {"picture is not there": len(missing), "no caption": len(pictures) - len(captioned)}
    source.missing = {reason: count for reason, count in left_out.items() if count}
    return source
