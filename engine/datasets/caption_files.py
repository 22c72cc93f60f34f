"""Read JSON files of captions: COCO, NoCaps, Karpathy's splits, ALBEF and LAVIS.

The files name pictures. `read_annotations` pairs the captions with the pictures below a folder; `read_caption_file`
returns the tasks of an evaluation, whose pictures are looked for later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.datasets.captioned_pictures import CaptionedPicture, CaptionItem, Id, name_first_few
from engine.datasets.json_files import parse_captions, parse_id, read_json
from engine.datasets.picture_lookup import COCO_NAME, find_picture, list_published_names
from engine.errors import DataError


@dataclass(frozen=True)
class Annotations:
    """What a file of captions says. missing: names of pictures that are not below the images folder."""

    pictures: list[CaptionedPicture]
    missing: list[str]


def read_annotations(annotations: Path, images: Path, split: str = "test") -> Annotations:
    """Captions in one of the layouts that people have, see `captions_of`, with their pictures below `images`.

    A name is looked for as `published_names` has it. Raises DataError as `captions_of` does, and when none of
    the pictures is there: the annotations are another set's.
    """
    captions = captions_of(read_json(annotations), annotations, split)
    found = {name: find_picture(images, list_published_names(name)) for name in captions}
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


def read_caption_file(path: Path, split: str = "test") -> list[CaptionItem]:
    """Read a JSON file of captions as the tasks of an evaluation, whose pictures are not looked for yet.

    path: as COCO and NoCaps have it ({"images": [{"id", "file_name", "domain"}], "annotations": [{"image_id",
    "caption"}]}), as Karpathy has it, of which `split` is taken, or ALBEF/LAVIS. Raises DataError for a file that is
    none of these, or whose captions are of other photos.
    """
    content = read_json(path)
    if isinstance(content, dict) and not _is_karpathy(content):
        return _coco_tasks(content, path)
    captions = captions_of(content, path, split)
    return [
        CaptionItem(_image_id(name), list_published_names(name), texts) for name, texts in captions.items()
    ]


def _is_karpathy(content: dict[str, Any]) -> bool:
    images = content.get("images")
    return isinstance(images, list) and any(isinstance(one, dict) and "sentences" in one for one in images)


def _coco_tasks(content: dict[str, Any], source: Path) -> list[CaptionItem]:
    texts: dict[Id, tuple[str, ...]] = {}
    try:
        images = {
            parse_id(one["id"]): (str(one["file_name"]), str(one.get("domain") or ""))
            for one in content["images"]
        }
        for one in content.get("annotations", ()):
            texts[parse_id(one["image_id"])] = texts.get(one["image_id"], ()) + parse_captions(
                one["caption"], source
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{source} is not in COCO's layout: {error!r} where it should not be. It takes "
            '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.'
        ) from error
    if strangers := texts.keys() - images.keys():
        raise DataError(
            f"{source} has captions of {len(strangers):,} photos that it does not list ({name_first_few(strangers)}); "
            "are its images and its annotations of one set?"
        )
    return [
        CaptionItem(id_, list_published_names(name), texts.get(id_, ()), domain)
        for id_, (name, domain) in images.items()
    ]


def _image_id(name: str) -> Id:
    """COCO's number where the name has it, as its results do; else the name."""
    found = COCO_NAME.fullmatch(Path(name).name)
    return int(found[2]) if found else name
