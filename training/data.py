"""Captioned pictures: WebDataset shards, ALBEF/LAVIS JSON, a photo folder; decoded once for small training sets."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from braceexpand import braceexpand

from engine.errors import DataError, PhotoError
from engine.pictures.formats import PICTURE_SUFFIXES
from engine.pictures.opening import open_picture
from engine.pictures.squares import squash
from engine.types import Failure

_DROPPED = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))


@dataclass(frozen=True)
class CaptionedPicture:
    """One picture and its captions (none for uncaptioned ones). picture: the file's bytes, or where it lies. label: of
    the class it shows, empty where none is known."""

    key: str
    picture: bytes | Path
    captions: tuple[str, ...] = ()
    label: str = ""


def find_shards(names: Iterable[str], folder: Path, *, missing_ok: bool = False) -> list[Path]:
    """Shard files for names below folder such as "flickr8k-train-*.tar" or "laion-{00000..12933}.tar".

    Raises DataError for a name without a file; missing_ok: only when no file is there of all that braces stand for.
    """
    found: list[Path] = []
    for name in names:
        try:
            each = list(braceexpand(name))
        except ValueError as error:
            raise DataError(f"The shard name {name!r} has unbalanced braces.") from error
        shards = [(one, sorted(folder.glob(one))) for one in each]
        absent = [one for one, paths in shards if not paths]
        if len(absent) == len(each) or (absent and not missing_ok):
            raise DataError(f"No shard {absent[0]} in {folder}; check the folder and the name.")
        for one, paths in shards:
            found += paths or [folder / one]
    return found


def read_shards(shards: Sequence[Path]) -> Iterator[CaptionedPicture]:
    """WebDataset tars of `key.<picture>` + `key.json` (`captions`: a list; `label`). Raises DataError for a broken
    shard."""
    for shard in shards:
        try:
            for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False):
                suffix = next((s for s in PICTURE_SUFFIXES if s in sample), None)
                if suffix is None:
                    raise DataError(
                        f"{shard}: sample {sample['__key__']} has no picture ({', '.join(PICTURE_SUFFIXES)})."
                    )
                facts = json.loads(sample["json"]) if "json" in sample else {}
                captions = parse_captions(facts.get("captions", []), shard)
                yield CaptionedPicture(sample["__key__"], sample[suffix], captions, parse_label(facts))
        except (OSError, ValueError, tarfile.TarError) as error:
            raise DataError(f"{shard} is not a readable shard: {error}") from error


@dataclass(frozen=True)
class Annotations:
    """What a file of captions says. missing: names of pictures that are not below the images folder."""

    pictures: list[CaptionedPicture]
    missing: list[str]


def read_annotations(annotations: Path, images: Path, split: str = "test") -> Annotations:
    """Captions in one of the layouts that people have, see `captions_of`, with their pictures below `images`.

    A name is looked for as it is, and without its folders. Raises DataError as `captions_of` does, and when none of
    the pictures is there: the annotations are another set's.
    """
    captions = captions_of(read_json(annotations), annotations, split)
    found = {name: _find_picture(images, name) for name in captions}
    missing = [name for name, path in found.items() if path is None]
    if len(missing) == len(captions):
        raise DataError(
            f"None of the {len(captions):,} pictures that {annotations} names is below {images} (the first is "
            f"{missing[0]}): the captions are another set's, or --images should name the folder that holds them."
        )
    pictures = [
        CaptionedPicture(name, path, captions[name]) for name, path in found.items() if path is not None
    ]
    return Annotations(pictures, missing)


def captions_of(content: Any, source: Path, split: str = "test") -> dict[str, tuple[str, ...]]:
    """The captions of each picture by its name, from what a JSON file holds.

    ALBEF/LAVIS: a list of {"image": name, "caption": text or list of texts}; rows of one image are joined. Karpathy:
    {"images": [{"filename", "filepath" (COCO's), "split", "sentences": [{"raw"}]}]}, of which `split` is taken. Raises
    DataError when it is of neither form, names nothing, or has no such split.
    """
    captions = _karpathy(content, source, split) if isinstance(content, dict) else _albef(content, source)
    if not captions:
        raise DataError(f"{source} names no pictures.")
    return captions


def read_json(path: Path) -> Any:
    """Raises DataError for a file that is not there or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error


def _find_picture(images: Path, name: str) -> Path | None:
    for path in (images / name, images / Path(name).name):
        if path.is_file():
            return path
    return None


def _albef(content: Any, source: Path) -> dict[str, tuple[str, ...]]:
    if not isinstance(content, list) or not all(
        isinstance(r, dict) and isinstance(r.get("image"), str) and "caption" in r for r in content
    ):
        raise DataError(
            f'{source} should be a list of objects with "image" and "caption" (ALBEF/LAVIS), or an object with '
            '"images" (Karpathy).'
        )
    captions: dict[str, tuple[str, ...]] = {}
    for row in content:
        captions[row["image"]] = captions.get(row["image"], ()) + parse_captions(row["caption"], source)
    return captions


def _karpathy(content: dict[str, Any], source: Path, split: str) -> dict[str, tuple[str, ...]]:
    try:
        splits = {row["split"] for row in content["images"]}
        chosen = {
            f"{row['filepath']}/{row['filename']}"
            if row.get("filepath")
            else row["filename"]: parse_captions([sentence["raw"] for sentence in row["sentences"]], source)
            for row in content["images"]
            if row["split"] == split
        }
    except (KeyError, TypeError) as error:
        raise DataError(f"{source} is not in Karpathy's layout: {error!r} where it should not be.") from error
    if not chosen:
        raise DataError(f"{source} has no split {split!r}; it has: {', '.join(sorted(splits)) or 'none'}.")
    return chosen


def plain_caption(text: str, max_words: int = 50) -> str:
    """A caption as LAVIS gives it to language models: lower case, without full stops, quotes, brackets and their like,
    single spaces, `max_words` at most (its `BlipCaptionProcessor`)."""
    return " ".join(text.lower().translate(_DROPPED).split()[:max_words])


def parse_captions(value: Any, source: Path) -> tuple[str, ...]:
    """A text or a list of texts, empty ones left out. Raises DataError for anything else, naming the source."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise DataError(f"{source}: captions should be a text or a list of texts, not {value!r}.")
    return tuple(t for t in texts if t.strip())


def parse_label(facts: Mapping[str, Any]) -> str:
    """The class's name, empty where there is none or only its number."""
    label = facts.get("label", "")
    return label.strip() if isinstance(label, str) else ""


def read_pictures(samples: Sequence[CaptionedPicture], size: int) -> list[np.ndarray | None]:
    """Decode and squash some pictures, in threads -> uint8 (size, size, 3) each, None for one that cannot be read."""
    return [one if isinstance(one, np.ndarray) else None for one in _decoded(samples, size)]


def _decoded(samples: Sequence[CaptionedPicture], size: int) -> list[np.ndarray | Failure]:
    def decode(sample: CaptionedPicture) -> np.ndarray | Failure:
        try:
            return squash(open_picture(sample.picture), size)
        except PhotoError as error:
            return Failure(Path(sample.key), str(error))

    with ThreadPoolExecutor(4) as pool:  # Pillow decodes without holding the interpreter's lock
        return list(pool.map(decode, samples))


def data_digest(samples: Sequence[CaptionedPicture]) -> str:
    """Hex digest of names, captions and pictures: the bytes of those in memory, size and time of files."""
    state = hashlib.blake2b(digest_size=16)
    for sample in samples:
        if isinstance(sample.picture, Path):
            facts = sample.picture.stat()
            what = f"{facts.st_size} {facts.st_mtime_ns}".encode()
        else:
            what = hashlib.blake2b(sample.picture).digest()
        state.update(json.dumps([sample.key, *sample.captions]).encode() + what)
    return state.hexdigest()


def load_pictures(
    samples: Sequence[CaptionedPicture], size: int
) -> tuple[np.ndarray, list[CaptionedPicture], list[Failure]]:
    """Decode and squash every picture -> uint8 (N, size, size, 3), the samples they belong to, what failed."""
    decoded = _decoded(samples, size)
    kept = [s for s, d in zip(samples, decoded, strict=True) if isinstance(d, np.ndarray)]
    pictures = [d for d in decoded if isinstance(d, np.ndarray)]
    if not pictures:
        raise DataError(f"None of the {len(samples)} pictures could be read.")
    return np.stack(pictures), kept, [d for d in decoded if isinstance(d, Failure)]
