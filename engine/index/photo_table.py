"""Keep the photos in a table with one row for each distinct content, found by id or by digest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import IndexStateError
from engine.index.database import Table
from engine.index.schemas import make_fixed_lists, make_photo_schema, read_fixed_lists


@dataclass(frozen=True, slots=True, eq=False)
class NewPhoto:
    """A photo to add. vectors_QE: float16 unit vectors. features: the bytes of its patches, or None."""

    digest: str
    width: int
    height: int
    vectors_QE: np.ndarray
    features: bytes | None = None


@dataclass(frozen=True)
class _Rows:
    """The photos at one version of the table without vectors and patches: ascending ids, the rest in the same order."""

    version: int
    ids: np.ndarray
    row_ids: np.ndarray
    digests: pa.Array
    widths: np.ndarray
    heights: np.ndarray


class PhotoTable:
    """The photos of an index. They are added and deleted but never changed, and an id is never given twice."""

    def __init__(self, table: Table, num_queries: int, embed_dim: int) -> None:
        self.table = table
        self._shape = (num_queries, embed_dim)
        self._rows: _Rows | None = None
        self._known: tuple[int, dict[str, int]] = (-1, {})

    @property
    def ids(self) -> np.ndarray:
        """Return the ascending int64 ids of all photos."""
        return self._all_rows().ids

    def read_ids_by_digest(self) -> dict[str, int]:
        """Return the id of each photo by its digest."""
        if self._known[0] != self.table.version:
            rows = self._all_rows()
            ids = dict(zip(rows.digests.to_pylist(), rows.ids.tolist(), strict=True))
            self._known = (rows.version, ids)
        return self._known[1]

    def find_rows_of_digests(self, digests: pa.ChunkedArray) -> np.ndarray:
        """Return for each digest the place of its photo among `ids`, -1 where there is none."""
        places = pc.index_in(digests, value_set=self._all_rows().digests)
        return places.fill_null(-1).to_numpy().astype(np.int64)

    def find_rows(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return for each id its place among `ids`. Raises IndexStateError for an id that is not there."""
        rows = self._all_rows()
        asked_ids = np.asarray(ids, dtype=np.int64)
        places = np.searchsorted(rows.ids, asked_ids)
        is_there = places < len(rows.ids)
        is_there[is_there] = rows.ids[places[is_there]] == asked_ids[is_there]
        if not is_there.all():
            raise IndexStateError(f"Photo {asked_ids[~is_there][0]} is no longer in the index. Ask again.")
        return places

    def read_facts(self, places: np.ndarray) -> list[tuple[int, str, int, int]]:
        """Return id, digest, width and height of the photos at these places."""
        rows = self._all_rows()
        digests = rows.digests.take(pa.array(places)).to_pylist()
        numbers = (values[places].tolist() for values in (rows.widths, rows.heights))
        return list(zip(rows.ids[places].tolist(), digests, *numbers, strict=True))

    def append(self, photos: Sequence[NewPhoto]) -> list[int]:
        """Commit the photos whose digest is new in one batch, and return the ids of all of them in their order."""
        known = self.read_ids_by_digest()
        new: dict[str, NewPhoto] = {}
        for photo in photos:
            if photo.digest not in known:
                new.setdefault(photo.digest, photo)
        if new:
            next_id = max(known.values(), default=-1) + 1
            ids = range(next_id, next_id + len(new))
            self.table.append(self._to_rows(ids, list(new.values())))
            known.update(zip(new, ids, strict=True))
            self._known = (self.table.version, known)
        return [known[photo.digest] for photo in photos]

    def delete(self, ids: np.ndarray) -> None:
        """Delete the photos of these ids, in one commit."""
        self.table.delete(f"id IN ({','.join(map(str, ids.tolist()))})")

    def read_vectors(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the ITC vectors (N, Q, E) float16 of photos in the order of `ids`."""
        if len(ids) == 0:
            return np.zeros((0, *self._shape), np.float16)
        unique, inverse = np.unique(np.asarray(ids, dtype=np.int64), return_inverse=True)
        rows = self.table.take(self._row_ids(unique), ["id", "vectors"])
        places = np.argsort(rows["id"].to_numpy())[inverse]
        return read_fixed_lists(rows["vectors"])[places].reshape(-1, *self._shape)

    def read_patches(self, ids: Sequence[int] | np.ndarray) -> list[bytes | None]:
        """Return the bytes of photos' patches in the order of `ids`, None where they are not kept."""
        return self.table.read_blobs("features", self._row_ids(ids)) if len(ids) else []

    def _all_rows(self) -> _Rows:
        version = self.table.version
        if self._rows is None or self._rows.version != version:
            rows = self.table.read(["id", "digest", "width", "height"], row_ids=True)
            rows = rows.take(pc.sort_indices(rows["id"])).combine_chunks()
            digests = rows["digest"].combine_chunks()
            numbers = (rows[name].to_numpy() for name in ("id", "_rowid", "width", "height"))
            ids, row_ids, widths, heights = numbers
            self._rows = _Rows(version, ids, row_ids, digests, widths, heights)
        return self._rows

    def _row_ids(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        return self._all_rows().row_ids[self.find_rows(ids)]

    def _to_rows(self, ids: range, photos: list[NewPhoto]) -> pa.Table:
        vectors = np.stack([photo.vectors_QE for photo in photos])
        if vectors.shape[1:] != self._shape:
            raise ValueError(
                f"The vectors of a photo are {vectors.shape[1:]}, but the index keeps {self._shape}."
            )
        columns = [
            ids,
            [photo.digest for photo in photos],
            [photo.width for photo in photos],
            [photo.height for photo in photos],
            make_fixed_lists(vectors),
            pa.array([photo.features for photo in photos], pa.large_binary()),
        ]
        return pa.table(columns, schema=make_photo_schema(*self._shape))
