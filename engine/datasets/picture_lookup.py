"""Find pictures in a folder by the names under which a set publishes them.

COCO has published the same picture under several names, so each name stands for several paths at which the file may be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.datasets.captioned_pictures import Item
from engine.errors import DataError

COCO_NAME = re.compile(r"COCO_([a-z]+\d{4})_(\d{12})\.jpg")
"""COCO's file names of 2014, such as COCO_val2014_000000000042.jpg: the part, and the picture's number."""


def find_picture(images: Path, names: Sequence[str]) -> Path | None:
    """Return the first of the names below `images` that is a file, None where none is; see `list_published_names`."""
    return next((path for name in names if (path := images / name).is_file()), None)


def list_published_names(name: str) -> tuple[str, ...]:
    """List the names under which a picture may be stored, the most likely first.

    These are the name as it is and the name without its folders; for COCO also the name in the folder of its part
    (val2014/), and the name of 2017 (000000000042.jpg) with and without that folder.
    """
    file_name = Path(name).name
    names = [name, file_name]
    if match := COCO_NAME.fullmatch(file_name):
        part, number = match[1], match[2]
        names += [f"{part}/{file_name}", f"{number}.jpg", f"{part}/{number}.jpg"]
    return tuple(dict.fromkeys(names))


def find_pictures(items: Sequence[Item], images: Path) -> tuple[list[Item], list[str]]:
    """Return the items with the pictures found below `images`, and the names of the missing pictures, each once.

    Items that already have a picture stay as they are; items whose picture is missing are left out. Raise DataError
    when no item is left.
    """
    paths: dict[tuple[str, ...], Path | None] = {}
    for names in {item.names: None for item in items if item.picture is None}:
        paths[names] = find_picture(images, names)
    missing = [names[0] for names, path in paths.items() if path is None]
    items_with_pictures = [
        item if item.picture is not None else replace(item, picture=paths[item.names])
        for item in items
        if item.picture is not None or paths[item.names] is not None
    ]
    if not items_with_pictures:
        raise DataError(
            f"None of the {len(missing):,} pictures is in {images} (the first is {missing[0]}): --images should name "
            "the folder that holds them."
        )
    return items_with_pictures, missing
