"""Read and write WebDataset tars: `key.jpg` with `key.json` or `key.txt` for every picture.

`TarShard` reads the headers once, then any picture by its number. `read_shards` reads the pictures of whole tars in
order. `write_captioned` writes a tar that is there whole or not at all.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from engine.atomic import replace_file
from engine.datasets.captioned_pictures import CaptionedPicture, Sample
from engine.datasets.json_files import CAPTION_COLUMNS, parse_captions, parse_label
from engine.errors import DataError
from engine.pictures.formats import SHARD_PICTURE_SUFFIXES, SHARD_SUFFIX_BY_FIRST_BYTES
from engine.pictures.opening import open_picture

TEXT_SUFFIXES = ("json", "txt")
"""Of a sample with both, the JSON counts: it says more."""

_PICTURES_ALLOWED = ", ".join(SHARD_PICTURE_SUFFIXES)


def find_shards(names: Iterable[str], folder: Path, *, missing_ok: bool = False) -> list[Path]:
    """Shard files for names below folder such as "flickr8k-train-*.tar" or "laion-{00000..12933}.tar".

    Raises DataError for a name without a file; missing_ok: only when no file is there of all that braces stand for.
    """
    found: list[Path] = []
    for name in names:
        try:
            each = expand_braces(name)
        except ValueError as error:
            raise DataError(f"The shard name {name!r} has unbalanced braces.") from error
        shards = [(one, sorted(folder.glob(one))) for one in each]
        absent = [one for one, paths in shards if not paths]
        if len(absent) == len(each) or (absent and not missing_ok):
            raise DataError(_not_there(absent[0], folder))
        for one, paths in shards:
            found += paths or [folder / one]
    return found


def expand_braces(name: str) -> list[str]:
    """List what a name such as "laion-{00000..12933}.tar" stands for; a name without braces stands for itself.

    Raises ValueError for unbalanced braces, DataError where the package that expands them is missing.
    """
    if not {"{", "}"} & set(name):
        return [name]
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise DataError(f"{name!r} has braces, which need an extra: pip install 'qseek[train]'.") from None
    return list(braceexpand(name))


def _not_there(name: str, folder: Path) -> str:
    return f"No shard {name} in {folder}; check the folder and the name."


def read_shards(shards: Sequence[Path]) -> Iterator[CaptionedPicture]:
    """Read the pictures of whole shards in their order. Raises DataError as `TarShard` and its `pictures` do."""
    for path in shards:
        yield from TarShard(path).iterate_pictures()


class TarShard:
    """The pictures of a WebDataset tar with their captions, which are read when they are asked for.

    A sample is `key.<picture>` with `key.json` ("captions", "caption" or "text", and "label") or `key.txt`. count: how
    many samples have a picture; samples without are left out, and `pictures` refuses them.
    """

    def __init__(self, path: Path):
        """Read the headers. Raises DataError when the file is no whole, uncompressed tar, or has no picture."""
        self.path = path
        files, self._fault = _read_headers(path)
        pictures = {key: _first_of(places, SHARD_PICTURE_SUFFIXES) for key, places in files.items()}
        self.keys = [key for key, suffix in pictures.items() if suffix]
        self.count = len(self.keys)
        if not self.keys:
            raise DataError(f"{path} has no picture ({_PICTURES_ALLOWED}).")
        if not self._fault and self.count < len(files):
            bare = next(key for key, suffix in pictures.items() if not suffix)
            self._fault = f"sample {bare} has no picture ({_PICTURES_ALLOWED})"
        texts = [_first_of(files[key], TEXT_SUFFIXES) for key in self.keys]
        self._has_json = np.array([suffix == "json" for suffix in texts])
        places = [
            (*files[key][pictures[key]], *files[key].get(suffix, (0, 0)))
            for key, suffix in zip(self.keys, texts, strict=True)
        ]
        self.byte_ranges = np.array(places, dtype=np.int64)
        """(count, 4): of each sample where its picture begins, its size in bytes, and the same of its text."""

    def read_sample(self, row: int) -> Sample:
        """Read a sample by its number, 0 to count - 1. Raises DataError for one that cannot be read."""
        return Sample(self.read_picture(row), row)

    def read_picture(self, row: int) -> CaptionedPicture:
        """Read a picture with all of its captions; see `read`."""
        try:
            return self._read(row)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: {self.keys[row]} cannot be read: {error}") from error

    def iterate_pictures(self) -> Iterator[CaptionedPicture]:
        """Read all pictures in their order.

        Raises DataError where that would not be the whole set: for a sample without picture, a file that is there
        twice, or a sample that cannot be read.
        """
        if self._fault:
            raise DataError(f"{self.path}: {self._fault}.")
        for row in range(self.count):
            try:
                yield self._read(row)
            except (OSError, ValueError) as error:
                raise DataError(f"{self.path} is not a readable shard: {self.keys[row]}: {error}") from error

    def _read(self, row: int) -> CaptionedPicture:
        """Raises OSError, ValueError (of text and JSON that cannot be decoded) and DataError (captions of no form)."""
        key = self.keys[row]
        picture_at, picture_size, text_at, text_size = map(int, self.byte_ranges[row])
        with open(self.path, "rb") as file:
            file.seek(picture_at)
            picture = file.read(picture_size)
            file.seek(text_at)
            text = file.read(text_size)
        source = f"{self.path}, sample {key}"
        if not self._has_json[row]:
            return CaptionedPicture(key, picture, parse_captions(text.decode().strip(), source))
        facts = json.loads(text)
        if not isinstance(facts, dict):
            raise ValueError(f"its JSON should be an object, not {str(facts)[:60]}")
        captions: Any = next((facts[name] for name in reversed(CAPTION_COLUMNS) if facts.get(name)), [])
        return CaptionedPicture(key, picture, parse_captions(captions, source), parse_label(facts))


def _first_of(places: Mapping[str, tuple[int, int]], suffixes: Sequence[str]) -> str:
    """Return the first of the suffixes of which a sample has a file that is not empty; "" where it has none."""
    return next((suffix for suffix in suffixes if places.get(suffix, (0, 0))[1]), "")


def _read_headers(path: Path) -> tuple[dict[str, dict[str, tuple[int, int]]], str]:
    """Return of each sample by its key where each file begins and its size, by suffix, and the first fault or "".

    Raises DataError when the file is no whole, uncompressed tar.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    fault = ""
    try:
        num_bytes = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, suffix = _key_and_suffix(member)
                if not key:
                    continue
                if member.offset_data + member.size > num_bytes:
                    raise DataError(f"{path} ends in the middle of {member.name}.")
                files = samples.setdefault(key, {})
                if suffix in files and not fault:
                    fault = f"{member.name} is there twice"
                files[suffix] = (member.offset_data, member.size)
            with open(path, "rb") as file:
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut for an end
                    raise DataError(f"{path} is cut off: it has no end mark.")
    except FileNotFoundError as error:
        raise DataError(_not_there(path.name, path.parent)) from error
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} is not a readable shard: {_why_unreadable(path, error)}") from error
    return samples, fault


def _key_and_suffix(member: tarfile.TarInfo) -> tuple[str, str]:
    """Split a file's name at the first point of its last part; the suffix is lower case.

    The key is "" for what belongs to no sample: folders, links, names without a stem, and what WebDataset keeps of
    itself in folders such as `__meta__`.
    """
    folder, _, name = member.name.rpartition("/")
    stem, point, suffix = name.partition(".")
    first = folder.split("/")[0]
    is_meta = len(first) > 4 and first.startswith("__") and first.endswith("__")
    if not member.isfile() or not stem or not point or is_meta:
        return "", ""
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        is_compressed = tarfile.is_tarfile(
            path
        )  # tries every compression, which reading at any place rules out
    except OSError:
        is_compressed = False
    return "it is compressed; unpack it first, for example with gunzip" if is_compressed else str(error)


def write_captioned_shard(path: Path, rows: Iterable[tuple[CaptionedPicture, Mapping[str, Any]]]) -> None:
    """Write a tar of `key.<picture>` and `key.json`, as `TarShard` reads it; it is there whole or not at all.

    rows: each photo with what its JSON says. The pictures are the files' own bytes where shards have a suffix for them,
    else JPEG. The same rows give the same bytes.
    """
    used: set[str] = set()
    with replace_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for picture, facts in rows:
            stem = re.sub(r"[^\w-]+", "_", picture.key.removesuffix(Path(picture.key).suffix))
            key = next(name for name in chain([stem], (f"{stem}-{n}" for n in count())) if name not in used)
            used.add(key)
            suffix, content = _picture_file(picture)
            members = {suffix: content, "json": json.dumps(facts).encode()}
            for member_suffix in sorted(members):
                _add_member(tar, f"{key}.{member_suffix}", members[member_suffix])


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file whose header depends on nothing but its name and size."""
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = len(content), 0, 0o444
    header.uname = header.gname = "bigdata"  # as WebDataset's writer has it
    tar.addfile(header, io.BytesIO(content))


def _picture_file(picture: CaptionedPicture) -> tuple[str, bytes]:
    content = picture.picture if isinstance(picture.picture, bytes) else picture.picture.read_bytes()
    for start, suffix in SHARD_SUFFIX_BY_FIRST_BYTES.items():
        if content.startswith(start):
            return suffix, content
    file = io.BytesIO()
    open_picture(picture.picture).save(file, "JPEG", quality=95)
    return "jpg", file.getvalue()
