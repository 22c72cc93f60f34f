"""Make an index anew beside the old one, which it replaces when it is complete (`qseek index --reindex`).

Until then the old index answers, whatever happens. A new index that was begun with the same settings is continued.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import IndexStateError, QueryError
from engine.index.caption_table import NewCaption
from engine.index.manifest import FILE_NAME, Manifest, has_index
from engine.index.store import CACHE_FOLDER, TABLES_FOLDER, Store
from engine.types import Caption
from engine.wording import count_text

if TYPE_CHECKING:
    from engine.models.retrieval_model import RetrievalModel

NEW = "reindex"  # The new index lies in a folder of the old one, and so on the same disk.
CAPTION_BATCH = 4096
# The manifest comes last: a folder without it holds no index.
PARTS = (TABLES_FOLDER, CACHE_FOLDER, FILE_NAME)


@dataclass(frozen=True)
class Contents:
    """The parts of an old index that a new one is made from.

    roots: its folders of photos. texts: its texts. model: the name of its model, None when the index cannot be read.
    captions: its captions by the digest of their photos.
    """

    roots: tuple[Path, ...]
    texts: tuple[str, ...] = ()
    model: str | None = None
    captions: dict[str, Caption] = field(default_factory=dict)


def read_contents(folder: Path, given: Sequence[Path]) -> Contents:
    """Return what to index again: the given folders, and everything that the old index knows.

    A damaged old index is ignored when folders are given. Raises QueryError for a known folder that is not there, since
    its photos would be lost; IndexStateError for a damaged index when no folders are given.
    """
    try:
        store = Store.open(folder)
        files = store.read_files()
    except IndexStateError:
        if not given:
            raise
        return Contents(tuple(given))
    roots = list(dict.fromkeys([*given, *(record.root for record in files.values() if not record.missing)]))
    for root in roots:
        if not root.exists() and root not in given:
            num_photos = sum(record.root == root for record in files.values())
            raise QueryError(
                f"{root} is not there, and its {count_text(num_photos, 'photo')} would be lost. Mount its drive, or "
                "make another index with --index."
            )
    ids = [id_ for part, _ in store.texts.iterate_vectors() for id_ in part.tolist()]
    captions = store.captions.read_captions(store.captions.list_ids_and_photos()[1])
    caption_by_digest = {
        digest: captions[id_] for digest, id_ in store.map_ids_by_digest().items() if id_ in captions
    }
    return Contents(tuple(roots), tuple(store.texts.read(ids)), store.manifest.model, caption_by_digest)


def carry_captions(old: Contents, store: Store, model: RetrievalModel) -> None:
    """Copy the captions of an old index to a new one, each with its photo and with a vector by the new model."""
    known = store.captions.read_captions(store.captions.list_ids_and_photos()[1])
    ids = store.map_ids_by_digest()
    captions = [(ids[digest], caption) for digest, caption in old.captions.items() if digest in ids]
    captions = [(id_, caption) for id_, caption in captions if id_ not in known]
    for start in range(0, len(captions), CAPTION_BATCH):
        batch = captions[start : start + CAPTION_BATCH]
        vectors = model.encode_texts([caption.text for _, caption in batch])[0].astype("float16")
        store.captions.put(
            [
                NewCaption(id_, caption.text, caption.writer, caption.writer_digest, vector)
                for (id_, caption), vector in zip(batch, vectors, strict=True)
            ]
        )


def open_new_store(folder: Path, manifest: Manifest) -> Store:
    """Open the new index beside the old one: the one that was begun with this manifest, else an empty one."""
    new = folder / NEW
    if has_index(new):
        try:
            begun = Store.open(new)
            if begun.manifest == manifest:
                return begun
        except IndexStateError:
            pass
    shutil.rmtree(new, ignore_errors=True)
    return Store.create(new, manifest)


def replace_old_index(folder: Path) -> None:
    """Put the new index in the place of the old one. It may be called again when it was interrupted."""
    (folder / PARTS[-1]).unlink(missing_ok=True)
    for part in PARTS[:-1]:
        if (folder / NEW / part).exists():
            shutil.rmtree(folder / part, ignore_errors=True)
            os.replace(folder / NEW / part, folder / part)
    os.replace(folder / NEW / PARTS[-1], folder / PARTS[-1])
    shutil.rmtree(folder / NEW)


def finish_interrupted(folder: Path) -> None:
    """Finish a replacement that was interrupted."""
    # Only an interrupted `replace_old_index` leaves a new index where there is no old one.
    if has_index(folder / NEW) and not has_index(folder):
        replace_old_index(folder)
