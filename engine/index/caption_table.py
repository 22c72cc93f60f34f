"""Keep captions of photos in a table, each with the vector of its text, so that captions are searched as texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.index.database import Database, Table, make_ids_condition, retry_on_newest
from engine.index.schemas import make_caption_schema, make_fixed_lists, read_fixed_lists
from engine.index.writer_lock import Held
from engine.types import Caption

NAME = "captions"


@dataclass(frozen=True, slots=True, eq=False)
class NewCaption:
    """A caption to put into the table.

    photo_id: the id of its photo. writer, writer_digest: name and digest of the model that wrote it. vector_E: float16
    unit vector of the text, by the model of the index.
    """

    photo_id: int
    text: str
    writer: str
    writer_digest: str
    vector_E: np.ndarray


@dataclass(frozen=True)
class _Rows:
    """The captions at one version of the table: ascending ids, with the photo's id and the writer's digest of each."""

    version: int
    ids: np.ndarray
    photos: np.ndarray
    digests: pa.ChunkedArray


class CaptionTable:
    """The captions of an index, at most one for each photo.

    A new caption replaces the old one under a new id, so that an id always means the same text. The table is made with
    the first caption, because older indexes have none. writing: returns a context that holds the writer's lock.
    """

    def __init__(self, database: Database, embed_dim: int, writing: Held) -> None:
        self._database = database
        self._embed_dim = embed_dim
        self._writing = writing
        self.table: Table | None = database.open_if_exists(NAME)
        self._rows: _Rows | None = None

    @property
    def version(self) -> int:
        """Return the version of the table, 0 where there is no table yet."""
        return 0 if self.table is None else self.table.version

    def refresh(self) -> None:
        """Move on to the newest version."""
        if self.table is None:
            self.table = self._database.open_if_exists(NAME)
        else:
            self.table.refresh()

    def put(self, captions: Sequence[NewCaption]) -> None:
        """Commit captions in one batch; each replaces an older one of its photo, and the last of several counts.

        Raises IndexStateError when the disk is full.
        """
        with self._writing():
            self._upsert(list({caption.photo_id: caption for caption in captions}.values()))

    @retry_on_newest
    def read_captions(self, photo_ids: Sequence[int] | np.ndarray) -> dict[int, Caption]:
        """Return the captions of the photos that have one, by the photo's id."""
        captioned = np.intersect1d(np.asarray(photo_ids, dtype=np.int64), self._all_rows().photos)
        if self.table is None or not len(captioned):
            return {}
        condition = make_ids_condition(captioned.tolist(), "photo")
        rows = self.table.read(["photo", "text", "writer", "writer_digest"], condition)
        columns = (rows[name].to_pylist() for name in ("photo", "text", "writer", "writer_digest"))
        return {photo: Caption(*fields) for photo, *fields in zip(*columns, strict=True)}

    @retry_on_newest
    def photos_written_by(self, writer_digest: str) -> np.ndarray:
        """Return the ids of the photos whose caption the model of this digest wrote."""
        rows = self._all_rows()
        return rows.photos[pc.equal(rows.digests, writer_digest).to_numpy()]

    @retry_on_newest
    def count_by_captioner(self) -> dict[str, int]:
        """Return how many captions each model wrote, by its name, the largest number first."""
        if self.table is None:
            return {}
        counts = pc.value_counts(self.table.read(["writer"])["writer"]).to_pylist()
        return {
            count["values"]: count["counts"] for count in sorted(counts, key=lambda count: -count["counts"])
        }

    @retry_on_newest
    def list_ids_and_photos(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the ascending int64 ids of the captions, and the photo's id of each.

        A caption that is written anew has a new id.
        """
        rows = self._all_rows()
        return rows.ids, rows.photos

    @retry_on_newest
    def read_vectors(self, ids: np.ndarray) -> np.ndarray:
        """Return the vectors (N, E) float16 of captions in the order of their ids, all of which must exist."""
        if self.table is None or not len(ids):
            return np.zeros((0, self._embed_dim), np.float16)
        rows = self.table.read(["id", "vector"], make_ids_condition(np.asarray(ids).tolist()))
        rows = rows.take(pc.sort_indices(rows["id"]))
        return read_fixed_lists(rows["vector"])[np.searchsorted(rows["id"].to_numpy(), ids)]

    def forget(self, photo_ids: np.ndarray) -> None:
        """Delete the captions of photos that were deleted, except for the highest id, which must not be given again.

        The caller holds the writer's lock.
        """
        rows = self._all_rows()
        gone = rows.ids[:-1][np.isin(rows.photos[:-1], photo_ids)]
        if self.table is not None and len(gone):
            self.table.delete(make_ids_condition(gone.tolist()))

    def _upsert(self, captions: list[NewCaption]) -> None:
        if not captions:
            return
        if self.table is None:
            self.table = self._database.create(NAME, make_caption_schema(self._embed_dim))
        next_id = int(self._all_rows().ids.max(initial=-1)) + 1
        columns = [
            range(next_id, next_id + len(captions)),
            [caption.photo_id for caption in captions],
            [caption.text for caption in captions],
            [caption.writer for caption in captions],
            [caption.writer_digest for caption in captions],
            make_fixed_lists(np.stack([caption.vector_E for caption in captions])),
        ]
        self.table.upsert(pa.table(columns, schema=make_caption_schema(self._embed_dim)), ["photo"])

    def _all_rows(self) -> _Rows:
        if self._rows is None or self._rows.version != self.version:
            schema = make_caption_schema(self._embed_dim)
            names = ["id", "photo", "writer_digest"]
            empty = schema.empty_table().select(names)
            rows = empty if self.table is None else self.table.read(names)
            rows = rows.take(pc.sort_indices(rows["id"]))
            self._rows = _Rows(
                self.version, rows["id"].to_numpy(), rows["photo"].to_numpy(), rows["writer_digest"]
            )
        return self._rows
