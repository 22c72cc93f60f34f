"""Read JSON files of captions: COCO, NoCaps, Karpathy's splits, ALBEF and LAVIS.

The files name pictures. `read_annotations` pairs the captions with the pictures below a folder; `read_caption_file`
returns the items of an evaluation, whose pictures are looked for later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.datasets.captioned_pictures import CaptionedPicture, CaptionItem, Id, name_first_few
from engine.datasets.json_files import parse_captions, parse_id, read_json
from engine.datasets.picture_lookup import COCO_NAME, find_picture, list_published_names
from engine.errors import DataError
from engine.wording import count_text


@dataclass(frozen=True)
class Annotations:
    """The captioned pictures that a file of captions names.

    pictures: the pictures that are below the folder of pictures, with their captions.
    missing: the names of the pictures that are not below it.
    """

    pictures: list[CaptionedPicture]
    missing: list[str]


def read_annotations(annotations: Path, images: Path, split: str = "test") -> Annotations:
    """Read a file of captions in one of the layouts of `parse_caption_file`, and find its pictures below `images`.

    Each picture is looked for under the names that `list_published_names` gives. Raise DataError for a file in no
    known layout, and when none of the pictures is below `images`: the annotations are another set's.
    """
    captions = parse_caption_file(read_json(annotations), annotations, split)
    paths = {name: find_picture(images, list_published_names(name)) for name in captions}
    missing = [name for name, path in paths.items() if path is None]
    if len(missing) == len(captions):
        raise DataError(
            f"None of the {len(captions):,} pictures that {annotations} names is below {images} (the first is "
            f"{missing[0]}): the captions are another set's, or --images should name the folder that holds them."
        )
    pictures = [
        CaptionedPicture(name, path, captions[name]) for name, path in paths.items() if path is not None
    ]
    return Annotations(pictures, missing)


def parse_caption_file(content: Any, path: Path, split: str = "test") -> dict[str, tuple[str, ...]]:
    """Return the captions of each picture by its name, from the content of a JSON file.

    ALBEF and LAVIS: a list of {"image": name, "caption": text or list of texts}; rows of one image are joined.
    Karpathy: {"images": [{"filename", "filepath" (COCO only), "split", "sentences": [{"raw"}]}]}; only the rows of
    `split` are read. Raise DataError when the content has neither layout, names no pictures, or has no such split.
    path: the file, for messages.
    """
    captions = (
        _parse_karpathy(content, path, split) if isinstance(content, dict) else _parse_albef(content, path)
    )
    if not captions:
        raise DataError(f"{path} names no pictures.")
    return captions


def _parse_albef(content: Any, path: Path) -> dict[str, tuple[str, ...]]:
    if not isinstance(content, list) or not all(
        isinstance(row, dict) and isinstance(row.get("image"), str) and "caption" in row for row in content
    ):
        raise DataError(
            f'{path} should be a list of objects with "image" and "caption" (ALBEF/LAVIS), or an object with '
            '"images" (Karpathy).'
        )
    captions: dict[str, tuple[str, ...]] = {}
    for row in content:
        captions[row["image"]] = captions.get(row["image"], ()) + parse_captions(row["caption"], path)
    return captions


def _parse_karpathy(content: dict[str, Any], path: Path, split: str) -> dict[str, tuple[str, ...]]:
    try:
        splits = {row["split"] for row in content["images"]}
        captions = {
            _get_karpathy_name(row): parse_captions([sentence["raw"] for sentence in row["sentences"]], path)
            for row in content["images"]
            if row["split"] == split
        }
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not in Karpathy's layout ({error!r}). It should hold "
            '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}.'
        ) from error
    if not captions:
        raise DataError(f"{path} has no split {split!r}; it has: {', '.join(sorted(splits)) or 'none'}.")
    return captions


def _get_karpathy_name(row: dict[str, Any]) -> str:
    return f"{row['filepath']}/{row['filename']}" if row.get("filepath") else row["filename"]


def read_caption_file(path: Path, split: str = "test") -> list[CaptionItem]:
    """Read a JSON file of captions as the items of an evaluation, whose pictures are not looked for yet.

    path: a file of COCO or NoCaps ({"images": [{"id", "file_name", "domain"}], "annotations": [{"image_id",
    "caption"}]}), of Karpathy, from which only `split` is read, or of ALBEF or LAVIS. Raise DataError for a file in
    none of these layouts, and for one with captions of photos that it does not list.
    """
    content = read_json(path)
    if isinstance(content, dict) and not _is_karpathy(content):
        return _parse_coco(content, path)
    captions = parse_caption_file(content, path, split)
    return [
        CaptionItem(_parse_image_id(name), list_published_names(name), texts)
        for name, texts in captions.items()
    ]


def _is_karpathy(content: dict[str, Any]) -> bool:
    images = content.get("images")
    return isinstance(images, list) and any(
        isinstance(image, dict) and "sentences" in image for image in images
    )


def _parse_coco(content: dict[str, Any], path: Path) -> list[CaptionItem]:
    captions: dict[Id, tuple[str, ...]] = {}
    try:
        images = {
            parse_id(image["id"]): (str(image["file_name"]), str(image.get("domain") or ""))
            for image in content["images"]
        }
        for annotation in content.get("annotations", ()):
            image_id = parse_id(annotation["image_id"])
            captions[image_id] = captions.get(image_id, ()) + parse_captions(annotation["caption"], path)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not in COCO's layout ({error!r}). It should hold "
            '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.'
        ) from error
    if unlisted := captions.keys() - images.keys():
        raise DataError(
            f"{path} has captions of {count_text(len(unlisted), 'photo')} that it does not list "
            f"({name_first_few(unlisted)}); its images and its annotations should be of one set."
        )
    return [
        CaptionItem(image_id, list_published_names(name), captions.get(image_id, ()), domain)
        for image_id, (name, domain) in images.items()
    ]


def _parse_image_id(name: str) -> Id:
    """Return COCO's number of a picture where its name holds it, as COCO's results files use it; else the name."""
    match = COCO_NAME.fullmatch(Path(name).name)
    return int(match[2]) if match else name
