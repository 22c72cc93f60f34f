"""--reindex: a new index is made beside the old one and takes its place when it is complete.

Until then the old one answers, whatever happens; a new one that was begun for the same model is gone on with.
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

NEW = "reindex"  # folder in the index's own, so that it lies on the same disk
CAPTIONS_AT_ONCE = 4096
PARTS = (TABLES_FOLDER, CACHE_FOLDER, FILE_NAME)  # the manifest last: without it a folder holds no index


@dataclass(frozen=True)
class Contents:
    """What the old index was made from. roots: its folders. model: its name, None when it cannot be read.
    captions: by the digest of their photos."""

    roots: tuple[Path, ...]
    texts: tuple[str, ...] = ()
    model: str | None = None
    captions: dict[str, Caption] = field(default_factory=dict)


def contents_of(folder: Path, given: Sequence[Path]) -> Contents:
    """What to index again: the given folders and all that the old index knows.

    A damaged old index is passed over when folders are given. Raises QueryError for a known folder that is
    not there, for its photos would be lost; IndexStateError for a damaged index without folders given.
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
                f"{root} is not there, and its {count_text(num_photos, 'photo')} would be lost: mount its drive, "
                "or make another index with --index"
            )
    ids = [id_ for part, _ in store.texts.iterate_vectors() for id_ in part.tolist()]
    captions = store.captions.read_captions(store.captions.list_ids_and_photos()[1])
    by_digest = {
        digest: captions[id_] for digest, id_ in store.map_ids_by_digest().items() if id_ in captions
    }
    return Contents(tuple(roots), tuple(store.texts.read(ids)), store.manifest.model, by_digest)


def carry_captions(old: Contents, store: Store, model: RetrievalModel) -> None:
    """Captions stay with their photos: only their vectors are the new model's."""
    known = store.captions.read_captions(store.captions.list_ids_and_photos()[1])
    ids = store.map_ids_by_digest()
    photos = [(ids[digest], one) for digest, one in old.captions.items() if digest in ids]
    photos = [(id_, caption) for id_, caption in photos if id_ not in known]
    for start in range(0, len(photos), CAPTIONS_AT_ONCE):
        some = photos[start : start + CAPTIONS_AT_ONCE]
        vectors = model.encode_texts([caption.text for _, caption in some])[0].astype("float16")
        store.captions.put(
            [
                NewCaption(id_, caption.text, caption.writer, caption.writer_digest, vector)
                for (id_, caption), vector in zip(some, vectors, strict=True)
            ]
        )


def new_store(folder: Path, manifest: Manifest) -> Store:
    """The new index beside the old one, begun or gone on with."""
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


def take_its_place(folder: Path) -> None:
    """Put the new index in the place of the old one; may be called again when it was interrupted."""
    (folder / PARTS[-1]).unlink(missing_ok=True)
    for part in PARTS[:-1]:
        if (folder / NEW / part).exists():
            shutil.rmtree(folder / part, ignore_errors=True)
            os.replace(folder / NEW / part, folder / part)
    os.replace(folder / NEW / PARTS[-1], folder / PARTS[-1])
    shutil.rmtree(folder / NEW)


def finish_interrupted(folder: Path) -> None:
    """Only `take_its_place` leaves a new index beside no old one."""
    if has_index(folder / NEW) and not has_index(folder):
        take_its_place(folder)
