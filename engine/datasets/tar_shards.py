"""Read and write WebDataset tars: `key.jpg` with `key.json` or `key.txt` for every picture.

`TarShard` reads the headers once, then any picture by its number. `read_shards` reads the pictures of whole tars in
order. `write_captioned_shard` writes a tar that is there whole or not at all.
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
"""Suffixes of the files that hold a sample's captions; of a sample with both the JSON is read, since it says more."""

_PICTURES_ALLOWED = ", ".join(SHARD_PICTURE_SUFFIXES)


def find_shards(names: Iterable[str], folder: Path, *, missing_ok: bool = False) -> list[Path]:
    """Return the shard files below a folder for names such as "flickr8k-train-*.tar" or "laion-{00000..12933}.tar".

    A name with braces stands for several names. Raise DataError when one of these has no file, or with `missing_ok`
    when none of them has one; the paths of the missing files are then returned, too.
    """
    shards: list[Path] = []
    for name in names:
        try:
            expanded_names = expand_braces(name)
        except ValueError as error:
            raise DataError(f"The shard name {name!r} has unbalanced braces.") from error
        paths_by_name = [(expanded, sorted(folder.glob(expanded))) for expanded in expanded_names]
        absent = [expanded for expanded, paths in paths_by_name if not paths]
        if len(absent) == len(expanded_names) or (absent and not missing_ok):
            raise DataError(_missing_shard_text(absent[0], folder))
        for expanded, paths in paths_by_name:
            shards += paths or [folder / expanded]
    return shards


def expand_braces(name: str) -> list[str]:
    """List the names that a name such as "laion-{00000..12933}.tar" stands for; without braces it is the only one.

    Raise ValueError for unbalanced braces, DataError where the package that expands them is missing.
    """
    if not {"{", "}"} & set(name):
        return [name]
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise DataError(f"{name!r} has braces, which need an extra: pip install 'qseek[train]'.") from None
    return list(braceexpand(name))


def _missing_shard_text(name: str, folder: Path) -> str:
    return f"No shard {name} in {folder}; check the folder and the name."


def read_shards(shards: Sequence[Path]) -> Iterator[CaptionedPicture]:
    """Read the pictures of whole shards in order.

    Raise DataError for a shard that cannot be opened (`TarShard`) or is not whole (`TarShard.iterate_pictures`).
    """
    for path in shards:
        yield from TarShard(path).iterate_pictures()


class TarShard:
    """The captioned pictures of a WebDataset tar, each read from the tar when it is asked for.

    A sample is `key.<picture>` with `key.json` ("captions", "caption" or "text", and "label") or `key.txt`.

    keys: the keys of the samples that have a picture. Samples without a picture have no number, and `iterate_pictures`
    refuses them.
    count: the number of keys.
    byte_ranges: int64 (count, 4): where the picture of each sample begins, its size in bytes, and the same two numbers
    of its captions, 0 and 0 without any.
    """

    def __init__(self, path: Path):
        """Read the headers. Raise DataError when the file is not a whole, uncompressed tar with a picture in it."""
        self.path = path
        files, self._fault = _read_headers(path)
        pictures = {key: _find_first_suffix(ranges, SHARD_PICTURE_SUFFIXES) for key, ranges in files.items()}
        self.keys = [key for key, suffix in pictures.items() if suffix]
        self.count = len(self.keys)
        if not self.keys:
            raise DataError(f"{path} has no picture ({_PICTURES_ALLOWED}).")
        if not self._fault and self.count < len(files):
            key_without_picture = next(key for key, suffix in pictures.items() if not suffix)
            self._fault = f"sample {key_without_picture} has no picture ({_PICTURES_ALLOWED})"
        texts = [_find_first_suffix(files[key], TEXT_SUFFIXES) for key in self.keys]
        self._has_json = np.array([suffix == "json" for suffix in texts])
        byte_ranges = [
            (*files[key][pictures[key]], *files[key].get(suffix, (0, 0)))
            for key, suffix in zip(self.keys, texts, strict=True)
        ]
        self.byte_ranges = np.array(byte_ranges, dtype=np.int64)

    def read_sample(self, row: int) -> Sample:
        """Read a sample by its number, 0 to count - 1. Raise DataError for one that cannot be read."""
        return Sample(self.read_picture(row), row)

    def read_picture(self, row: int) -> CaptionedPicture:
        """Read a picture with all of its captions by its number, 0 to count - 1.

        Raise DataError for one that cannot be read.
        """
        try:
            return self._read(row)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: {self.keys[row]} cannot be read: {error}") from error

    def iterate_pictures(self) -> Iterator[CaptionedPicture]:
        """Read all pictures in order.

        Raise DataError where the pictures would not be the whole shard: for a sample without a picture, a file that is
        in the tar twice, or a sample that cannot be read.
        """
        if self._fault:
            raise DataError(f"{self.path}: {self._fault}.")
        for row in range(self.count):
            try:
                yield self._read(row)
            except (OSError, ValueError) as error:
                raise DataError(f"{self.path} is not a readable shard: {self.keys[row]}: {error}") from error

    def _read(self, row: int) -> CaptionedPicture:
        """Read a picture with all of its captions.

        Raise OSError, ValueError for text and JSON that cannot be decoded, and DataError for captions that are no
        texts.
        """
        key = self.keys[row]
        picture_start, picture_size, text_start, text_size = map(int, self.byte_ranges[row])
        with open(self.path, "rb") as file:
            file.seek(picture_start)
            picture = file.read(picture_size)
            file.seek(text_start)
            text = file.read(text_size)
        described_as = f"{self.path}, sample {key}"
        if not self._has_json[row]:
            return CaptionedPicture(key, picture, parse_captions(text.decode().strip(), described_as))
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(f"JSON should be an object, not {str(fields)[:60]}.")
        captions: Any = next((fields[name] for name in reversed(CAPTION_COLUMNS) if fields.get(name)), [])
        return CaptionedPicture(key, picture, parse_captions(captions, described_as), parse_label(fields))


def _find_first_suffix(ranges: Mapping[str, tuple[int, int]], suffixes: Sequence[str]) -> str:
    """Return the first of the suffixes under which a sample has a file that is not empty; "" where it has none.

    ranges: start and size of each file of the sample, by suffix.
    """
    return next((suffix for suffix in suffixes if ranges.get(suffix, (0, 0))[1]), "")


def _read_headers(path: Path) -> tuple[dict[str, dict[str, tuple[int, int]]], str]:
    """Return start and size of each file in a tar, by the sample's key and the suffix, and the first fault or "".

    Raise DataError when the file is not a whole, uncompressed tar.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    fault = ""
    try:
        num_bytes = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, suffix = _split_member_name(member)
                if not key:
                    continue
                if member.offset_data + member.size > num_bytes:
                    raise DataError(f"{path} ends in the middle of {member.name}.")
                files = samples.setdefault(key, {})
                if suffix in files and not fault:
                    fault = f"{member.name} is there twice"
                files[suffix] = (member.offset_data, member.size)
            _check_end_mark(path, tar.offset)
    except FileNotFoundError as error:
        raise DataError(_missing_shard_text(path.name, path.parent)) from error
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} is not a readable shard: {_explain_unreadable(path, error)}") from error
    return samples, fault


def _check_end_mark(path: Path, offset: int) -> None:
    """Raise DataError when no empty block follows the last file of a tar: tarfile reads a cut there as its end."""
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(f"{path} is cut off: it has no end mark.")


def _split_member_name(member: tarfile.TarInfo) -> tuple[str, str]:
    """Split the name of a file in a tar into the sample's key and a suffix, at the first point behind the folders.

    The suffix is in lower case. The key is "" for what belongs to no sample: folders, links, names without a stem, and
    what WebDataset stores about itself in folders such as `__meta__`.
    """
    folder, _, name = member.name.rpartition("/")
    stem, point, suffix = name.partition(".")
    top_folder = folder.split("/")[0]
    is_meta = len(top_folder) > 4 and top_folder.startswith("__") and top_folder.endswith("__")
    if not member.isfile() or not stem or not point or is_meta:
        return "", ""
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _explain_unreadable(path: Path, error: Exception) -> str:
    try:
        # With a path alone is_tarfile also tries every compression, which random access rules out.
        is_compressed = tarfile.is_tarfile(path)
    except OSError:
        is_compressed = False
    return "it is compressed; unpack it first, for example with gunzip" if is_compressed else str(error)


def write_captioned_shard(path: Path, rows: Iterable[tuple[CaptionedPicture, Mapping[str, Any]]]) -> None:
    """Write a tar of `key.<picture>` and `key.json`, which `TarShard` reads; it is there whole or not at all.

    rows: each picture with the content of its JSON. A picture is written with the bytes of its file where shards have a
    suffix for its format, else as JPEG. Equal rows give equal bytes.
    """
    used_keys: set[str] = set()
    with replace_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for picture, fields in rows:
            stem = re.sub(r"[^\w-]+", "_", picture.key.removesuffix(Path(picture.key).suffix))
            keys = chain([stem], (f"{stem}-{number}" for number in count()))
            key = next(key for key in keys if key not in used_keys)
            used_keys.add(key)
            suffix, content = _encode_picture(picture)
            members = {suffix: content, "json": json.dumps(fields).encode()}
            for member_suffix in sorted(members):
                _add_member(tar, f"{key}.{member_suffix}", members[member_suffix])


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file whose header depends on nothing but its name and size."""
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = len(content), 0, 0o444
    header.uname = header.gname = "bigdata"  # the names that WebDataset's writer uses
    tar.addfile(header, io.BytesIO(content))


def _encode_picture(picture: CaptionedPicture) -> tuple[str, bytes]:
    """Return the suffix and the bytes with which a picture enters a shard; see `write_captioned_shard`."""
    content = picture.picture if isinstance(picture.picture, bytes) else picture.picture.read_bytes()
    for start, suffix in SHARD_SUFFIX_BY_FIRST_BYTES.items():
        if content.startswith(start):
            return suffix, content
    file = io.BytesIO()
    open_picture(picture.picture).save(file, "JPEG", quality=95)
    return "jpg", file.getvalue()
