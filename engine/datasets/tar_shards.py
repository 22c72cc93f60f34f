"""Read and write WebDataset tars: `key.jpg` with `key.json` or `key.txt` for every picture.

`TarShard` reads the headers once and then any sample by its number. `read_shards` reads the pictures in order.
`write_captioned` writes a tar that is there whole or not at all.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from engine.datasets.captioned_pictures import CaptionedPicture, Sample
from engine.datasets.json_files import CAPTION_COLUMNS, parse_captions, parse_label
from engine.errors import DataError
from engine.pictures.formats import SHARD_PICTURE_SUFFIXES, SHARD_SUFFIX_BY_FIRST_BYTES
from engine.pictures.opening import open_picture


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
            raise DataError(f"No shard {absent[0]} in {folder}; check the folder and the name.")
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


def read_shards(shards: Sequence[Path]) -> Iterator[CaptionedPicture]:
    """WebDataset tars of `key.<picture>` + `key.json` (`captions`: a list; `label`). Raises DataError for a broken
    shard."""
    for shard in shards:
        try:
            for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False):
                suffix = next((s for s in SHARD_PICTURE_SUFFIXES if s in sample), None)
                if suffix is None:
                    raise DataError(
                        f"{shard}: sample {sample['__key__']} has no picture ({', '.join(SHARD_PICTURE_SUFFIXES)})."
                    )
                facts = json.loads(sample["json"]) if "json" in sample else {}
                captions = parse_captions(facts.get("captions", []), shard)
                yield CaptionedPicture(sample["__key__"], sample[suffix], captions, parse_label(facts))
        except (OSError, ValueError, tarfile.TarError) as error:
            raise DataError(f"{shard} is not a readable shard: {error}") from error


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


def _members(path: Path) -> tuple[list[str], np.ndarray]:
    """Keys, and for each the places and sizes of its picture and of its text, 0 0 where it has none."""
    found: dict[str, list[int]] = {}
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not member.isfile() or suffix.lower() not in (*SHARD_PICTURE_SUFFIXES, "json", "txt"):
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"{path} ends in the middle of {member.name}.")
                place = found.setdefault(f"{folder}/{stem}" if folder else stem, [0, 0, 0, 0])
                if suffix.lower() in SHARD_PICTURE_SUFFIXES:
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
        raise DataError(f"{path} has no picture ({', '.join(SHARD_PICTURE_SUFFIXES)}).")
    return list(kept), np.array(list(kept.values()), dtype=np.int64)


def _texts(content: bytes, path: Path) -> tuple[tuple[str, ...], str]:
    """-> captions, label."""
    text = content.decode()
    if not text.lstrip().startswith("{"):
        return parse_captions(text.strip(), path), ""
    facts = json.loads(text)
    captions: Any = next((facts[n] for n in reversed(CAPTION_COLUMNS) if facts.get(n)), [])
    return parse_captions(captions, path), parse_label(facts)


def write_captioned(path: Path, rows: Iterable[tuple[CaptionedPicture, Mapping[str, Any]]]) -> None:
    """A tar of `key.<picture>` + `key.json`, as `read_shards` reads it; there whole or not at all.

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
