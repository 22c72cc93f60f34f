"""Open sets of captioned pictures: tar shards, ALBEF/LAVIS or Karpathy JSON, a picture folder with metadata.

`open_set` is the one place that tells these apart. The set that it opens is read whole (`read_small_sets`), one picture
at a time, or as a `TrainingSet`: a sequence of shards, each with a known count and random access, so that the sample
at any position of a run can be computed and nothing has to be read again to resume. A JSON file or a folder is one
shard, and each of its captions is a sample. In tars each picture is a sample, and one of its captions is drawn each
time. `read_caption_items` reads a set for an evaluation.
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
    """The settings of one set to learn from.

    path: its path below the data folder.
    weight: its share of the samples, in proportion to the weights of the other sets.
    images: the folder of a JSON file's pictures below the data folder; empty for the folder of the file itself.
    """

    path: str
    weight: float = 1.0
    images: str = ""


@dataclass(frozen=True)
class SourceConfig(SetConfig):
    """The settings of a set of captioned pictures.

    path: tar shards by a pattern ("cc3m-*.tar", "laion-{00000..12933}.tar"), a .json file (ALBEF/LAVIS or Karpathy), or
    a folder with metadata.jsonl or metadata.csv.
    split: the split that is read from a Karpathy file.
    """

    split: str = "train"


class SetKind(Enum):
    """The three forms in which a set is stored."""

    TARS = "tar shards"
    JSON = "a JSON file that names pictures"
    FOLDER = "a folder of pictures with metadata"


def detect_set_kind(path: Path) -> SetKind:
    """Return the form in which a set is stored.

    path: a folder, a file, or a pattern of tar shards, none of which needs to exist.
    """
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
    """The pictures of a JSON file or a folder.

    Their names and captions are in memory; the file of a picture is read when it is needed. count: their number.
    """

    def __init__(self, listed: Sequence[CaptionedPicture]):
        self._listed = listed
        self.count = len(listed)

    def read_picture(self, row: int) -> CaptionedPicture:
        return self._listed[row]

    def iterate_pictures(self) -> Iterator[CaptionedPicture]:
        return iter(self._listed)


@dataclass(frozen=True)
class CaptionedSet:
    """An opened set of captioned pictures.

    parts: one for each tar shard that can be read, or a single one for a JSON file or a folder.
    names: the file name of each part.
    missing: the names of pictures whose files are missing.
    broken: the shards that are missing or cannot be read.
    """

    parts: list[TarShard | ListedPictures]
    names: list[str]
    missing: list[str] = field(default_factory=list)
    broken: list[Failure] = field(default_factory=list)

    def check_whole(self) -> None:
        """Raise DataError for the first shard that cannot be read."""
        if self.broken:
            raise DataError(self.broken[0].reason)

    def iterate_pictures(self) -> Iterator[CaptionedPicture]:
        """Read every picture with all of its captions. Raise DataError where a shard or a sample cannot be read."""
        self.check_whole()
        for part in self.parts:
            yield from part.iterate_pictures()


def open_set(
    name: str, *folders: Path, images: Path | None = None, split: str = "train", threads: int = 8
) -> CaptionedSet:
    """Open a set: read the headers of tars, and all of JSON files and folders but the pictures themselves.

    name: tar shards by a pattern, a JSON file (ALBEF/LAVIS or Karpathy), or a folder with metadata. It is looked for
    below each of the folders, and the first that holds it is taken.
    images: the folder of a JSON file's pictures; None for the folder of the file itself.
    split: the split that is read from a Karpathy file.
    Raise DataError for a JSON file or a folder that cannot be read, and for a pattern without a file. Tars that cannot
    be read raise nothing and are named in `broken`.
    """
    folder, name_below = find_set_folder(name, folders)
    path = folder / name_below
    kind = detect_set_kind(path)
    if kind is SetKind.FOLDER:
        listed, missing = read_picture_folder(path)
        return CaptionedSet([ListedPictures(listed)], [path.name], missing)
    if kind is SetKind.JSON:
        annotations = read_annotations(path, path.parent if images is None else images, split)
        return CaptionedSet([ListedPictures(annotations.pictures)], [path.name], annotations.missing)
    paths = find_shards([name_below], folder, missing_ok=True)
    with ThreadPoolExecutor(threads) as pool:
        opened = list(pool.map(_open_shard, paths))
    shards = [shard for shard in opened if isinstance(shard, TarShard)]
    broken = [failure for failure in opened if isinstance(failure, Failure)]
    return CaptionedSet([*shards], [shard.path.name for shard in shards], broken=broken)


def find_set_folder(name: str, folders: Sequence[Path]) -> tuple[Path, str]:
    """Return the first of the folders that holds a set, and the name of the set below it.

    The first folder of all is returned when none holds the set. For an absolute name the folder is its root.
    """
    if Path(name).is_absolute():
        anchor = Path(name).anchor
        return Path(anchor), str(Path(name).relative_to(anchor))
    if len(folders) == 1:
        return folders[0], name
    pattern = re.sub(r"\{.*\}", "*", name)
    folders_with_set = (
        folder for folder in folders if (folder / name).exists() or next(iter(folder.glob(pattern)), None)
    )
    return next(folders_with_set, folders[0]), name


def _open_shard(path: Path) -> TarShard | Failure:
    try:
        return TarShard(path)
    except DataError as error:
        return Failure(path, str(error))


def read_small_sets(names: Sequence[str], *folders: Path) -> list[CaptionedPicture]:
    """Read every picture of sets that fit in memory, with all of its captions.

    names, folders: as `open_set` takes them; the training split is read from Karpathy's files. Raise DataError for a
    set that cannot be read.
    """
    return [picture for name in names for picture in open_set(name, *folders).iterate_pictures()]


def read_caption_items(data: Path, split: str = "test") -> list[CaptionItem]:
    """Read a captioned set as the items of an evaluation.

    data: tar shards by a pattern, a folder with metadata (`read_picture_folder`), or JSON (`read_caption_file`). The
    pictures of JSON are not looked for yet; those of shards and folders are in their items. Raise DataError for a set
    that cannot be read, that names no picture, or that names one twice.
    """
    if detect_set_kind(data) is SetKind.JSON:
        items = read_caption_file(data, split)
    else:
        items = [
            CaptionItem(picture.key, (picture.key,), picture.captions, picture=picture.picture)
            for picture in open_set(data.name, data.parent).iterate_pictures()
        ]
    if not items:
        raise DataError(f"{data} names no pictures.")
    check_unique([item.id for item in items], "photo", data)
    return items


class ListShard:
    """The pairs of a JSON file or a folder as samples: every caption is a sample of its own.

    count: the number of samples, which is that of all captions.
    """

    def __init__(self, pictures: Sequence[CaptionedPicture]):
        self.pictures = pictures
        ends = np.cumsum([len(picture.captions) for picture in pictures], dtype=np.int64)
        self.ends, self.count = ends, int(ends[-1]) if len(ends) else 0

    def read_sample(self, row: int) -> Sample:
        """Return a sample by its number, 0 to count - 1."""
        number = int(np.searchsorted(self.ends, row, side="right"))
        picture = self.pictures[number]
        # The index is negative, from -len(captions) to -1, and so names each caption once.
        caption = picture.captions[row - int(self.ends[number])]
        return Sample(CaptionedPicture(picture.key, picture.picture, (caption,)), number)


class Shard(Protocol):
    """Samples with random access by number, 0 to count - 1."""

    @property
    def count(self) -> int: ...

    def read_sample(self, row: int) -> Sample: ...


@dataclass
class TrainingSet:
    """An opened set to learn from.

    names: the file name of each shard.
    broken: the shards that cannot be read and are left out.
    left_out: how many samples are left out from the beginning, by reason.
    """

    config: SetConfig
    shards: list[Shard]
    names: list[str]
    broken: list[Failure] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(shard.count for shard in self.shards)

    def digest(self) -> str:
        """Return a hex digest of the shards' names and counts, which decide the position of each sample."""
        counts = [[name, shard.count] for name, shard in zip(self.names, self.shards, strict=True)]
        return hashlib.blake2b(json.dumps(counts).encode(), digest_size=8).hexdigest()


def open_training_set(config: SourceConfig, data: Path, threads: int = 8) -> TrainingSet:
    """Open a set of captioned pictures to learn from, and count its samples.

    data: the folder below which the set is looked for. Shards that cannot be read are left out and named in `broken`;
    pictures without a caption and pictures that are missing are counted in `left_out`. Raise DataError when nothing of
    the set can be read or no picture has a caption.
    """
    images = data / config.images if config.images else None
    opened = open_set(config.path, data, images=images, split=config.split, threads=threads)
    if not opened.parts:
        raise DataError(
            f"None of the {len(opened.broken)} shards of {config.path} can be read: {opened.broken[0].reason}"
        )
    shards: list[Shard] = []
    num_uncaptioned = 0
    for part in opened.parts:
        if isinstance(part, TarShard):
            shards.append(part)
        else:
            captioned = [picture for picture in part.iterate_pictures() if picture.captions]
            num_uncaptioned += part.count - len(captioned)
            shards.append(ListShard(captioned))
    counts = {"picture is not there": len(opened.missing), "no caption": num_uncaptioned}
    left_out = {reason: count for reason, count in counts.items() if count}
    training_set = TrainingSet(config, shards, opened.names, opened.broken, left_out)
    if not training_set.count:
        raise DataError(f"{data / config.path}: none of its {num_uncaptioned} pictures has a caption.")
    return training_set
