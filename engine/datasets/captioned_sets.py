"""Open sets of captioned pictures: tar shards, ALBEF/LAVIS or Karpathy JSON, a picture folder with metadata.

`open_set` is the one place that tells these apart. What it returns is read whole (`read_small_sets`), one picture at a
time, or as a `Source` of training: a row of shards, each with a known count and random access, so that the sample at
any position of a run can be computed and nothing has to be read again to resume. A JSON file or a folder is one shard
and each of its captions is a sample. In tars each picture is a sample, and one of its captions is drawn each time.
`read_caption_tasks` reads a set for an evaluation.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np

from engine.datasets.caption_files import read_annotations, read_caption_file
from engine.datasets.captioned_pictures import CaptionedPicture, CaptionItem, Sample, check_unique
from engine.datasets.picture_folders import read_picture_folder
from engine.datasets.tar_shards import TarShard, find_shards
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


class SetKind(Enum):
    """How a set is kept."""

    TARS = "tar shards"
    JSON = "a JSON file that names pictures"
    FOLDER = "a folder of pictures with metadata"


def detect_set_kind(path: Path) -> SetKind:
    """Tell how a set is kept. path: a folder, a file, or a pattern of tar shards, of which none needs to be there."""
    if path.is_dir():
        return SetKind.FOLDER
    if path.suffix == ".json" or (path.suffix != ".tar" and path.is_file() and not _is_tar(path)):
        return SetKind.JSON
    return SetKind.TARS


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except OSError:
        return False


class ListedPictures:
    """The pictures of a JSON file or a folder: their names and captions in memory, each file read when it is needed."""

    def __init__(self, listed: Sequence[CaptionedPicture]):
        self._listed = listed
        self.count = len(listed)

    def read_picture(self, row: int) -> CaptionedPicture:
        return self._listed[row]

    def iterate_pictures(self) -> Iterator[CaptionedPicture]:
        return iter(self._listed)


@dataclass(frozen=True)
class CaptionedSet:
    """An opened set. parts: one for each tar shard, or one alone. names: of their files. missing: names of pictures
    that are not there. broken: shards that are not there or cannot be read."""

    parts: list[TarShard | ListedPictures]
    names: list[str]
    missing: list[str] = field(default_factory=list)
    broken: list[Failure] = field(default_factory=list)

    def check_whole(self) -> None:
        """Raises DataError for the first shard that cannot be read."""
        if self.broken:
            raise DataError(self.broken[0].reason)

    def iterate_pictures(self) -> Iterator[CaptionedPicture]:
        """Read every picture with all of its captions. Raises DataError where a shard or a sample cannot be read."""
        self.check_whole()
        for part in self.parts:
            yield from part.iterate_pictures()


def open_set(
    name: str, *folders: Path, images: Path | None = None, split: str = "train", threads: int = 8
) -> CaptionedSet:
    """Open a set: of tars the headers are read, of JSON and folders all but the pictures themselves.

    name, below the first of the folders that has one: tar shards by a pattern, a JSON file (ALBEF/LAVIS or Karpathy),
    or a folder with metadata. images: folder of a JSON file's pictures, its own when None. split: of a Karpathy file.
    Raises DataError for JSON and folders that cannot be read and for a pattern without a file; tars that cannot be read
    are named in `broken`.
    """
    folder, below = find_set_folder(name, folders)
    path = folder / below
    kind = detect_set_kind(path)
    if kind is SetKind.FOLDER:
        listed, missing = read_picture_folder(path)
        return CaptionedSet([ListedPictures(listed)], [path.name], missing)
    if kind is SetKind.JSON:
        annotations = read_annotations(path, path.parent if images is None else images, split)
        return CaptionedSet([ListedPictures(annotations.pictures)], [path.name], annotations.missing)
    paths = find_shards([below], folder, missing_ok=True)
    with ThreadPoolExecutor(threads) as pool:
        opened = list(pool.map(_opened, paths))
    shards = [shard for shard in opened if isinstance(shard, TarShard)]
    broken = [failure for failure in opened if isinstance(failure, Failure)]
    return CaptionedSet([*shards], [shard.path.name for shard in shards], broken=broken)


def find_set_folder(name: str, folders: Sequence[Path]) -> tuple[Path, str]:
    """-> the first of the folders that holds such a set, and the name below it; the first of all when none does."""
    if Path(name).is_absolute():
        anchor = Path(name).anchor
        return Path(anchor), str(Path(name).relative_to(anchor))
    if len(folders) == 1:
        return folders[0], name
    pattern = re.sub(r"\{.*\}", "*", name)
    found = (one for one in folders if (one / name).exists() or next(iter(one.glob(pattern)), None))
    return next(found, folders[0]), name


def _opened(path: Path) -> TarShard | Failure:
    try:
        return TarShard(path)
    except DataError as error:
        return Failure(path, str(error))


def read_small_sets(names: Sequence[str], *folders: Path) -> list[CaptionedPicture]:
    """Every picture of sets that fit in memory, with all of its captions.

    names: see `open_set`; of Karpathy's files the training split. Raises DataError for one that cannot be read.
    """
    return [picture for name in names for picture in open_set(name, *folders).iterate_pictures()]


def read_caption_items(data: Path, split: str = "test") -> list[CaptionItem]:
    """A captioned set for an evaluation, its pictures not looked for yet (those of shards and folders are there).

    data: tar shards by a pattern; a folder with metadata (`read_picture_folder`); or JSON (`read_caption_file`).
    Raises DataError for one that cannot be read, and for photos that it names twice.
    """
    if detect_set_kind(data) is SetKind.JSON:
        tasks = read_caption_file(data, split)
    else:
        tasks = [
            CaptionItem(picture.key, (picture.key,), picture.captions, picture=picture.picture)
            for picture in open_set(data.name, data.parent).iterate_pictures()
        ]
    if not tasks:
        raise DataError(f"{data} names no pictures.")
    check_unique([task.id for task in tasks], "photo", data)
    return tasks


class ListShard:
    """Pairs of a JSON file or folder, held in memory: every caption is a sample of its own."""

    def __init__(self, pictures: Sequence[CaptionedPicture]):
        self.pictures = pictures
        ends = np.cumsum([len(p.captions) for p in pictures], dtype=np.int64)
        self.ends, self.count = ends, int(ends[-1]) if len(ends) else 0

    def read_sample(self, row: int) -> Sample:
        number = int(np.searchsorted(self.ends, row, side="right"))
        picture = self.pictures[number]
        caption = picture.captions[row - int(self.ends[number])]  # counts from the last one back: each once
        return Sample(CaptionedPicture(picture.key, picture.picture, (caption,)), number)


class Shard(Protocol):
    """Samples with random access."""

    @property
    def count(self) -> int: ...

    def read_sample(self, row: int) -> Sample: ...


@dataclass
class TrainingSet:
    """An opened source. missing: how many samples were left out from the start, by reason. broken: shards left out."""

    config: SetConfig
    shards: list[Shard]
    names: list[str]
    broken: list[Failure] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(shard.count for shard in self.shards)

    def digest(self) -> str:
        """Of the shards' names and counts: what decides which sample lies where."""
        facts = [[name, shard.count] for name, shard in zip(self.names, self.shards, strict=True)]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def open_training_set(config: SourceConfig, data: Path, threads: int = 8) -> TrainingSet:
    """Look through a source's shards and count. Broken ones are left out and named in `broken`.

    Raises DataError when nothing of it can be read.
    """
    images = data / config.images if config.images else None
    opened = open_set(config.path, data, images=images, split=config.split, threads=threads)
    if not opened.parts:
        raise DataError(
            f"None of the {len(opened.broken)} shards of {config.path} can be read: {opened.broken[0].reason}"
        )
    source = TrainingSet(config, [], opened.names, opened.broken)
    num_bare = 0
    for part in opened.parts:
        if isinstance(part, TarShard):
            source.shards.append(part)
        else:
            captioned = [picture for picture in part.iterate_pictures() if picture.captions]
            num_bare += part.count - len(captioned)
            source.shards.append(ListShard(captioned))
    if not source.count:
        raise DataError(f"{data / config.path}: none of its {num_bare} pictures has a caption.")
    left_out = {"picture is not there": len(opened.missing), "no caption": num_bare}
    source.left_out = {reason: count for reason, count in left_out.items() if count}
    return source
