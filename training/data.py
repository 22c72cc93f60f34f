"""Captioned pictures: WebDataset shards, ALBEF/LAVIS JSON, a photo folder; decoded once for small training sets."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from engine.blip2.preprocess import squash
from engine.errors import DataError, PhotoError
from engine.pictures import open_picture
from engine.types import Failure

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class CaptionedPicture:
    """One picture and its captions (none for unlabelled ones). picture: the file's bytes, or where it lies."""

    key: str
    picture: bytes | Path
    captions: tuple[str, ...] = ()


def find_shards(names: Iterable[str], folder: Path) -> list[Path]:
    """Shard files for names such as "flickr8k-train-*.tar" below folder. Raises DataError for a name without a file."""
    found: list[Path] = []
    for name in names:
        shards = sorted(folder.glob(name))
        if not shards:
            raise DataError(f"No shard {name} in {folder}; check the folder and the name.")
        found += shards
    return found


def read_shards(shards: Sequence[Path]) -> Iterator[CaptionedPicture]:
    """WebDataset tars of `key.<picture>` + `key.json` (`captions`: a list). Raises DataError for a broken shard."""
    for shard in shards:
        try:
            for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False):
                suffix = next((s for s in PICTURE_SUFFIXES if s in sample), None)
                if suffix is None:
                    raise DataError(
                        f"{shard}: sample {sample['__key__']} has no picture ({', '.join(PICTURE_SUFFIXES)})."
                    )
                facts = json.loads(sample["json"]) if "json" in sample else {}
                yield CaptionedPicture(
                    sample["__key__"], sample[suffix], _captions(facts.get("captions", []), shard)
                )
        except (OSError, ValueError, tarfile.TarError) as error:
            raise DataError(f"{shard} is not a readable shard: {error}") from error


def read_annotations(annotations: Path, images: Path) -> list[CaptionedPicture]:
    """ALBEF/LAVIS JSON: a list of {"image": name below `images`, "caption": text or list of texts}.

    Rows of one image are joined. Raises DataError when the file is not of that form, or pictures are missing
    (all counted, the first named).
    """
    try:
        rows: Any = json.loads(annotations.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{annotations} is not readable JSON: {error}") from error
    if not isinstance(rows, list) or not all(
        isinstance(r, dict) and {"image", "caption"} <= r.keys() for r in rows
    ):
        raise DataError(
            f'{annotations} should be a list of objects with "image" and "caption" (ALBEF/LAVIS layout).'
        )
    captions: dict[str, tuple[str, ...]] = {}
    for row in rows:
        captions[row["image"]] = captions.get(row["image"], ()) + _captions(row["caption"], annotations)
    missing = [name for name in captions if not (images / name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(captions)} pictures are not below {images} (first: {missing[0]}); "
            "give their folder with --images."
        )
    return [CaptionedPicture(name, images / name, texts) for name, texts in captions.items()]


def _captions(value: Any, source: Path) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise DataError(f"{source}: captions should be a text or a list of texts, not {value!r}.")
    return tuple(t for t in texts if t.strip())


def load_pictures(
    samples: Sequence[CaptionedPicture], size: int
) -> tuple[np.ndarray, list[CaptionedPicture], list[Failure]]:
    """Decode and squash every picture -> uint8 (N, size, size, 3), the samples they belong to, what failed."""

    def decode(sample: CaptionedPicture) -> np.ndarray | Failure:
        try:
            return squash(open_picture(sample.picture), size)
        except PhotoError as error:
            return Failure(Path(sample.key), str(error))

    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(decode, samples))
    kept = [s for s, d in zip(samples, decoded, strict=True) if isinstance(d, np.ndarray)]
    pictures = [d for d in decoded if isinstance(d, np.ndarray)]
    if not pictures:
        raise DataError(f"None of the {len(samples)} pictures could be read.")
    return np.stack(pictures), kept, [d for d in decoded if isinstance(d, Failure)]
