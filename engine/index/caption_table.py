"""The table of captions: what a model wrote of a photo, with the text's vector, so that it is searched as a text."""

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
    """A caption to put. photo_id: whose. writer_digest: of the checkpoint that wrote it. vector_E: float16 unit vector
    of the text, by the model of the index."""

    photo_id: int
    text: str
    writer: str
    writer_digest: str
    vector_E: np.ndarray


@dataclass(frozen=True)
class _Rows:
    """At one version of the table: ids ascend, photos and writers' digests follow them."""

    version: int
    ids: np.ndarray
    photos: np.ndarray
    digests: pa.ChunkedArray


class CaptionTable:
    """At most one caption a photo. A new one takes the old one's place under a new id: an id stays with its
    text.

    The table is made with the first caption: indexes from before there were captions have none. writing: gives a
    context that holds the writer's lock.
    """

    def __init__(self, database: Database, embed_dim: int, writing: Held) -> None:
        self._database = database
        self._embed_dim = embed_dim
        self._writing = writing
        self.table: Table | None = database.open_if_exists(NAME)
        self._rows: _Rows | None = None

    @property
    def version(self) -> int:
        """0 where there is no table yet."""
        return 0 if self.table is None else self.table.version

    def refresh(self) -> None:
        """Move on to the newest version."""
        if self.table is None:
            self.table = self._database.open_if_exists(NAME)
        else:
            self.table.refresh()

    def put(self, captions: Sequence[NewCaption]) -> None:
        """Commit one batch; a photo's caption takes the place of an older one, and the last of several counts.

        Raises IndexStateError when the disk is full.
        """
        with self._writing():
            self._upsert(list({caption.photo_id: caption for caption in captions}.values()))

    @retry_on_newest
    def read_captions(self, photo_ids: Sequence[int] | np.ndarray) -> dict[int, Caption]:
        """Return the captions of the photos that have one, by the photo's id."""
        wanted = np.intersect1d(np.asarray(photo_ids, dtype=np.int64), self._all_rows().photos)
        if self.table is None or not len(wanted):
            return {}
        where = make_ids_condition(wanted.tolist(), "photo")
        rows = self.table.read(["photo", "text", "writer", "writer_digest"], where)
        columns = (rows[name].to_pylist() for name in ("photo", "text", "writer", "writer_digest"))
        return {photo: Caption(*fields) for photo, *fields in zip(*columns, strict=True)}

    @retry_on_newest
    def photos_written_by(self, writer_digest: str) -> np.ndarray:
        """Return the ids of the photos whose caption this checkpoint wrote."""
        rows = self._all_rows()
        return rows.photos[pc.equal(rows.digests, writer_digest).to_numpy()]

    @retry_on_newest
    def count_by_captioner(self) -> dict[str, int]:
        """Return how many captions each checkpoint wrote, by its name, most first."""
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
        """Return vectors (N, E) float16 in the order of the captions' ids, which are there."""
        if self.table is None or not len(ids):
            return np.zeros((0, self._embed_dim), np.float16)
        rows = self.table.read(["id", "vector"], make_ids_condition(np.asarray(ids).tolist()))
        rows = rows.take(pc.sort_indices(rows["id"]))
        return read_fixed_lists(rows["vector"])[np.searchsorted(rows["id"].to_numpy(), ids)]

    def forget(self, photo_ids: np.ndarray) -> None:
        """Delete those of photos that are no more, but for the highest id, which must not be given again.

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
