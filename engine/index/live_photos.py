"""Keep in memory which photos have a file that is not missing, and where their files are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.index.path_table import FileRecord, PathTable, join_path
from engine.index.photo_table import PhotoTable
from engine.types import Photo

_PATHS_PER_CONDITION = 1000  # More paths would make one SQL condition too long.


@dataclass(frozen=True)
class LiveFiles:
    """The files that are not missing, in memory, so that a search does not scan a table for the paths of its hits.

    versions: the versions of the tables of photos and of files. ids: the ascending ids of the photos that have a file.
    places: for each file the place of its photo among the ids of the photo table, ascending. files: root and path of
    each file, in the same order.
    """

    versions: tuple[int, int]
    ids: np.ndarray
    places: np.ndarray
    files: pa.Table


class LivePhotos:
    """The photos joined with their files; the join stays in memory until one of the two tables changes."""

    def __init__(self, photos: PhotoTable, files: PathTable[FileRecord]) -> None:
        self._photos = photos
        self._files = files
        self._live: LiveFiles | None = None

    def list_ids(self) -> np.ndarray:
        """Return the ascending int64 ids of the photos that have a file, (N,)."""
        return self._live_files().ids

    def read_photos(self, ids: Sequence[int] | np.ndarray) -> list[Photo]:
        """Return the photos in the order of `ids`, with the paths that are not missing.

        Raises IndexStateError for an id that is not in the table.
        """
        if len(ids) == 0:
            return []
        places = self._photos.find_rows(ids)
        live = self._live_files()
        starts, stops = (np.searchsorted(live.places, places, side) for side in ("left", "right"))
        rows_of_photos = [np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)]
        files = live.files.take(pa.array(np.concatenate(rows_of_photos))).to_pylist()
        paths = iter([join_path(file["root"], file["path"]) for file in files])
        facts = self._photos.read_facts(places)
        return [
            Photo(id_, digest, width, height, tuple(sorted(islice(paths, len(rows)))))
            for (id_, digest, width, height), rows in zip(facts, rows_of_photos, strict=True)
        ]

    def find_photos(self, paths: Sequence[Path]) -> list[Photo | None]:
        """Return the photo at each absolute path, None where none is indexed or the file is missing."""
        digests: dict[Path, str] = {}
        for start in range(0, len(paths), _PATHS_PER_CONDITION):
            rows = self._files.read_paths(paths[start : start + _PATHS_PER_CONDITION])
            for row in rows.filter(pc.invert(pc.field("missing"))).to_pylist():
                digests[join_path(row["root"], row["path"])] = row["digest"]
        read_ids_by_digest = self._photos.read_ids_by_digest()
        ids = {
            path: read_ids_by_digest[digest]
            for path, digest in digests.items()
            if digest in read_ids_by_digest
        }
        unique_ids = sorted(set(ids.values()))
        photos = dict(zip(unique_ids, self.read_photos(unique_ids), strict=True))
        return [photos[ids[path]] if path in ids else None for path in paths]

    def _live_files(self) -> LiveFiles:
        versions = (self._photos.table.version, self._files.table.version)
        if self._live is None or self._live.versions != versions:
            files = self._files.table.read(["digest", "root", "path"], "NOT missing")
            places = self._photos.find_rows_of_digests(files["digest"])
            order = np.argsort(places, kind="stable")
            # Files whose photo is not in the table have the place -1, which sorts first; they are left out.
            order = order[np.searchsorted(places[order], 0) :]
            files = files.select(["root", "path"]).take(pa.array(order)).combine_chunks()
            ids = self._photos.ids[np.unique(places[order])]
            self._live = LiveFiles(versions, ids, places[order], files)
        return self._live
