"""Where captioned pictures lie: tar shards, ALBEF/LAVIS or Karpathy JSON, a picture folder with metadata.

A source is a row of shards, each with a known count and random access, so that the sample at any position of a run
can be computed: nothing has to be read again to resume. A JSON file or a folder is one shard; a pair is a sample
there. In tars a picture is a sample, with one of its captions drawn each time.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.errors import DataError
from engine.pictures.formats import PICTURE_SUFFIXES
from engine.types import Failure
from training.data import (
    CaptionedPicture,
    find_shards,
    parse_captions,
    parse_label,
    read_annotations,
    read_shards,
)

CAPTION_COLUMNS = ("text", "caption", "captions")
METADATA = ("metadata.jsonl", "metadata.csv")


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


@dataclass(frozen=True)
class Sample:
    """One picture and the captions of which one is drawn. picture_id: equal for samples that show the same photo.
    question: what the captions answer, empty where nothing is asked."""

    pair: CaptionedPicture
    picture_id: int
    question: str = ""


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


class TarShard:
    """A WebDataset tar: `key.<picture>` with `key.json` ("captions", "caption" or "text") or `key.txt`.

    Only the headers are read to begin with; pictures when they are asked for.
    """

    def __init__(self, path: Path):
        """Raises DataError when the file is no whole, uncompressed tar, or has no picture."""
        self.path = path
        self.keys, self.places = _members(path)
        self.count = len(self.keys)

    def read(self, row: int) -> Sample:
        """Raises DataError for a sample that cannot be read."""
        picture_at, picture_size, text_at, text_size = (int(n) for n in self.places[row])
        try:
            with open(self.path, "rb") as file:
                file.seek(picture_at)
                picture = file.read(picture_size)
                file.seek(text_at)
                text = file.read(text_size)
            captions, label = _texts(text, self.path) if text_size else ((), "")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: {self.keys[row]} cannot be read: {error}") from error
        return Sample(CaptionedPicture(self.keys[row], picture, captions, label), row)


class Shard(Protocol):
    """Samples with random access."""

    @property
    def count(self) -> int: ...

    def read(self, row: int) -> Sample: ...


def _members(path: Path) -> tuple[list[str], np.ndarray]:
    """Keys, and for each the places and sizes of its picture and of its text, 0 0 where it has none."""
    found: dict[str, list[int]] = {}
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not member.isfile() or suffix.lower() not in (*PICTURE_SUFFIXES, "json", "txt"):
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"{path} ends in the middle of {member.name}.")
                place = found.setdefault(f"{folder}/{stem}" if folder else stem, [0, 0, 0, 0])
                if suffix.lower() in PICTURE_SUFFIXES:
                    place[:2] = [member.offset_data, member.size]
                elif not (suffix == "txt" and place[3]):  # a .json says more
                    place[2:] = [member.offset_data, member.size]
            with open(path, "rb") as file:
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut for an end
                    raise DataError(f"{path} is cut off: it has no end mark.")
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} is not a readable tar: {error}") from error
    kept = {key: place for key, place in found.items() if place[1]}
    if not kept:
        raise DataError(f"{path} has no picture ({', '.join(PICTURE_SUFFIXES)}).")
    return list(kept), np.array(list(kept.values()), dtype=np.int64)


def _texts(content: bytes, path: Path) -> tuple[tuple[str, ...], str]:
    """-> captions, label."""
    text = content.decode()
    if not text.lstrip().startswith("{"):
        return parse_captions(text.strip(), path), ""
    facts = json.loads(text)
    captions: Any = next((facts[n] for n in reversed(CAPTION_COLUMNS) if facts.get(n)), [])
    return parse_captions(captions, path), parse_label(facts)


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


def read_picture_folder(folder: Path) -> tuple[list[CaptionedPicture], list[str]]:
    """A folder as Hugging Face's ImageFolder has it: pictures, and metadata.jsonl or metadata.csv beside them.

    Its rows hold "file_name" and "text", "caption" or "captions" (a text or a list); rows of one picture are joined.
    Returns the pictures and the names of those that are not there. Raises DataError naming the row that does not fit,
    or when none of the pictures is there.
    """
    path = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has no {' or '.join(METADATA)}, which say what its pictures show.")
    captions: dict[str, tuple[str, ...]] = {}
    for number, row in _metadata_rows(path):
        column = next((name for name in CAPTION_COLUMNS if name in row), None)
        if not isinstance(row.get("file_name"), str) or column is None:
            raise DataError(
                f'{path}, line {number}: a row needs "file_name" and one of {", ".join(CAPTION_COLUMNS)}; '
                f"it has {', '.join(map(str, row)) or 'nothing'}."
            )
        name = row["file_name"]
        captions[name] = captions.get(name, ()) + parse_captions(row[column] or "", path)
    missing = [name for name in captions if not (folder / name).is_file()]
    if len(missing) == len(captions):
        raise DataError(
            f"None of the {len(captions)} pictures that {path} names is there (first: {[*missing, ''][0]})."
        )
    absent = set(missing)
    return [
        CaptionedPicture(n, folder / n, texts) for n, texts in captions.items() if n not in absent
    ], missing


def _metadata_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                yield from enumerate(csv.DictReader(file), 2)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{path}, line {number}: {line.strip()[:60]} is no JSON object.")
                    yield number, row
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


class Order:
    """Which sample of a source is the i-th that a run reads, computed from the seed and i alone.

    Every epoch takes the shards in another order, some of them at a time, and mixes the samples of those: reads stay
    within few files.
    """

    def __init__(self, source: Source, seed: Sequence[int], together: int = 8):
        self.source, self.seed, self.together = source, seed, together
        self._first = [0, *accumulate(shard.count for shard in source.shards)]
        self._kept: dict[tuple[int, int], tuple[list[int], np.ndarray]] = {}
        self._groups: tuple[int, list[list[int]], list[int]] = (-1, [], [])

    def __call__(self, position: int) -> Callable[[], Sample]:
        """A reader of that sample, for a thread of its own; it may raise DataError."""
        epoch, place = divmod(position, self.source.count)
        group, offset = self._group_of(epoch, place)
        shards, order = self._mixed(epoch, group)
        row = int(order[offset])
        for number in shards:
            count = self.source.shards[number].count
            if row < count:
                break
            row -= count
        shard, first = self.source.shards[number], self._first[number]

        def read() -> Sample:
            sample = shard.read(row)
            return replace(sample, picture_id=first + sample.picture_id)

        return read

    def _group_of(self, epoch: int, place: int) -> tuple[int, int]:
        if self._groups[0] != epoch:
            order = np.random.default_rng([*self.seed, epoch]).permutation(len(self.source.shards)).tolist()
            groups = [order[i : i + self.together] for i in range(0, len(order), self.together)]
            ends = list(accumulate(sum(self.source.shards[n].count for n in group) for group in groups))
            self._groups, self._kept = (epoch, groups, ends), {}
        ends = self._groups[2]
        group = int(np.searchsorted(ends, place, side="right"))
        return group, place - (ends[group - 1] if group else 0)

    def _mixed(self, epoch: int, group: int) -> tuple[list[int], np.ndarray]:
        if (epoch, group) not in self._kept:
            shards = self._groups[1][group]
            count = sum(self.source.shards[n].count for n in shards)
            if len(self._kept) > 1:
                self._kept = {}
            self._kept[epoch, group] = (
                shards,
                np.random.default_rng([*self.seed, epoch, group]).permutation(count),
            )
        return self._kept[epoch, group]
