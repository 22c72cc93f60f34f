"""Find pictures in a folder by the names under which a set publishes them.

COCO has published the same picture under several names, so each name stands for a few places where the file may lie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.datasets.captioned_pictures import Item
from engine.errors import DataError

COCO_NAME = re.compile(r"COCO_([a-z]+\d{4})_(\d{12})\.jpg")


def find_picture(images: Path, names: Sequence[str]) -> Path | None:
    """Return the first of the names below `images` that is a file, None where none is; see `published_names`."""
    return next((path for name in names if (path := images / name).is_file()), None)


def list_published_names(name: str) -> tuple[str, ...]:
    """As it is, without its folders, and COCO's in the folder of its part and as 2017 spells it."""
    last = Path(name).name
    names = [name, last]
    if found := COCO_NAME.fullmatch(last):
        names += [f"{found[1]}/{last}", f"{found[2]}.jpg", f"{found[1]}/{found[2]}.jpg"]
    return tuple(dict.fromkeys(names))


def find_pictures(tasks: Sequence[Item], images: Path) -> tuple[list[Item], list[str]]:
    """The tasks with their pictures below `images`, and the names of the pictures that are not there, each once.

    Raises DataError when none is there.
    """
    places: dict[tuple[str, ...], Path | None] = {}
    for names in {task.names: None for task in tasks if task.picture is None}:
        places[names] = find_picture(images, names)
    missing = [names[0] for names, place in places.items() if place is None]
    found = [
        task if task.picture is not None else replace(task, picture=places[task.names])
        for task in tasks
        if task.picture is not None or places[task.names] is not None
    ]
    if not found:
        raise DataError(
            f"None of the {len(missing):,} pictures is in {images} (the first is {missing[0]}): --images should name "
            "the folder that holds them."
        )
    return found, missing
