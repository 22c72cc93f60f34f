"""Read and write an index on disk: photos, their files, texts, captions and failures in LanceDB, which FAISS follows.

A Store sees the state at which it was opened, its own writes and, after `refresh`, those of others. Every write takes
the writer's lock; hold `writing()` around a whole build so that nobody else writes between two batches.

Shapes: N photos, Q queries, E embedding.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.errors import IndexStateError
from engine.index.caption_table import CaptionTable
from engine.index.database import MAX_FRAGMENTS, Database, Table, retry_on_newest
from engine.index.live_photos import LivePhotos
from engine.index.manifest import FILE_NAME, Manifest
from engine.index.path_table import FailureRecord, FileRecord, PathTable
from engine.index.photo_table import NewPhoto, PhotoTable
from engine.index.schemas import FAILURE_SCHEMA, FILE_SCHEMA, make_table_schemas
from engine.index.text_table import TextTable
from engine.index.writer_lock import LOCK_NAME, PROCESS_NAME, WriterLock, lock_folder
from engine.types import Photo

CACHE_FOLDER = "faiss"
TABLES_FOLDER = "tables"
_SMALL_TABLE_FRAGMENTS = 8  # Tables without photos' vectors are small, so that copying them is cheap.


class Store:
    """An index folder, which `Store.create` makes and `Store.open` opens."""

    def __init__(self, folder: Path, manifest: Manifest, database: Database, tables: Sequence[Table]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._lock = WriterLock(folder, self.refresh)
        photos, files, failures, texts = tables
        self._photos = PhotoTable(photos, manifest.num_queries, manifest.embed_dim)
        self._files = PathTable(files, FileRecord, FILE_SCHEMA)
        self._failures = PathTable(failures, FailureRecord, FAILURE_SCHEMA)
        self.texts = TextTable(texts, manifest.embed_dim, self.writing)
        self.captions = CaptionTable(database, manifest.embed_dim, self.writing)
        self._live_photos = LivePhotos(self._photos, self._files)

    @classmethod
    def create(cls, folder: Path, manifest: Manifest, *, replace: bool = False) -> Store:
        """Create an empty index. replace: whether it may replace an index that is there.

        The manifest is written last, because a folder without one holds no index. Raises IndexStateError when there is
        an index already, when another process writes it, and when the disk is full.
        """
        folder = Path(folder)
        _claim_folder(folder)
        with lock_folder(folder):
            if (folder / FILE_NAME).exists() and not replace:
                raise IndexStateError(
                    f"There is an index at {folder} already. Add to it with `qseek index`, or make it anew with "
                    "`qseek index --reindex`."
                )
            (folder / FILE_NAME).unlink(missing_ok=True)
            for name in (CACHE_FOLDER, TABLES_FOLDER):
                shutil.rmtree(folder / name, ignore_errors=True)
            database = Database(folder / TABLES_FOLDER)
            schemas = make_table_schemas(manifest.num_queries, manifest.embed_dim)
            tables = [database.create(name, schema) for name, schema in schemas.items()]
            manifest.save(folder)
        return cls(folder, manifest, database, tables)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open an index to read it or to add to it.

        Raises IndexStateError when there is none, when it is damaged, and when a newer qseek wrote it.
        """
        folder = Path(folder)
        manifest = Manifest.load(folder)
        database = Database(folder / TABLES_FOLDER)
        tables = [
            database.open(name) for name in make_table_schemas(manifest.num_queries, manifest.embed_dim)
        ]
        return cls(folder, manifest, database, tables)

    def refresh(self) -> None:
        """Move on to the newest state, which other processes may have written."""
        for table in self._tables():
            table.refresh()
        self.captions.refresh()

    def writing(self) -> AbstractContextManager[None]:
        """Hold the writer's lock while a block runs; see `WriterLock.hold`."""
        return self._lock.hold()

    @property
    def version(self) -> int:
        """Return the version of the table of photos, which changes whenever the table does."""
        return self._photos.table.version

    @property
    def num_photos(self) -> int:
        """Return the number of photos that have a file, which are those that a search can find."""
        return len(self.list_live_ids())

    @property
    @retry_on_newest
    def num_files(self) -> int:
        """Return the number of files that hold a photo and are not missing."""
        return self._files.table.count("NOT missing")

    @property
    @retry_on_newest
    def num_captions(self) -> int:
        """Return the number of photos that have a file and a caption."""
        _, photos = self.captions.list_ids_and_photos()
        return len(np.intersect1d(photos, self.list_live_ids()))

    @retry_on_newest
    def read_files(self, root: Path | None = None) -> dict[Path, FileRecord]:
        """Return the records of files by absolute path, missing ones as well: all, or those below a root."""
        return self._files.read_records(root)

    @retry_on_newest
    def read_failures(self, root: Path | None = None) -> dict[Path, FailureRecord]:
        """Return the records of files that could not be read, by absolute path: all, or those below a root."""
        return self._failures.read_records(root)

    @retry_on_newest
    def list_ids(self) -> np.ndarray:
        """Return the ascending int64 ids of all photos, even without a file; these are in the FAISS index."""
        return self._photos.ids

    @retry_on_newest
    def map_ids_by_digest(self) -> dict[str, int]:
        """Return the id of every photo by its digest, even of photos without a file."""
        return dict(self._photos.read_ids_by_digest())

    @retry_on_newest
    def list_live_ids(self) -> np.ndarray:
        """Return the ascending int64 ids of the photos with a file that is not missing, which a search may find."""
        return self._live_photos.list_ids()

    @retry_on_newest
    def read_photos(self, ids: Sequence[int] | np.ndarray) -> list[Photo]:
        """Return photos in the order of `ids`, each with its paths that are not missing.

        Raises IndexStateError for an id that is not there.
        """
        return self._live_photos.read_photos(ids)

    def find_photo(self, path: Path) -> Photo | None:
        """Return the photo at an absolute path, None when the path is not indexed or the file is missing."""
        return self.find_photos([path])[0]

    @retry_on_newest
    def find_photos(self, paths: Sequence[Path]) -> list[Photo | None]:
        """Return the photo at each absolute path, None where the path is not indexed or the file is missing."""
        return self._live_photos.find_photos(paths)

    @retry_on_newest
    def read_vectors(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the ITC vectors (N, Q, E) float16 of photos in the order of `ids`."""
        return self._photos.read_vectors(ids)

    def iterate_vectors(
        self, after_id: int = -1, batch: int = 4096
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids int64, vectors (n, Q, E) float16) of all photos in the order of their ids, with n <= batch.

        after_id: begin behind this id.
        """
        ids = self._photos.ids
        ids = ids[np.searchsorted(ids, after_id, side="right") :]
        for start in range(0, len(ids), batch):
            part = ids[start : start + batch]
            yield part, self.read_vectors(part)

    @retry_on_newest
    def read_patches(self, ids: Sequence[int] | np.ndarray) -> list[bytes | None]:
        """Return the bytes of photos' patches in the order of `ids`, None where they are not kept."""
        return self._photos.read_patches(ids)

    def add(
        self,
        photos: Sequence[NewPhoto],
        files: Sequence[FileRecord] = (),
        failures: Sequence[FailureRecord] = (),
    ) -> list[int]:
        """Commit one batch, and return the ids of its photos in their order.

        Photos are committed before files, so that a kill never leaves a file without its photo. A digest that is there
        already, or twice in the batch, is added once. A path that comes as a file is deleted from the failures, and the
        other way round. Raises IndexStateError when the disk is full.
        """
        with self.writing():
            return self.add_while_writing(photos, files, failures)

    def add_while_writing(
        self, photos: Sequence[NewPhoto], files: Sequence[FileRecord], failures: Sequence[FailureRecord]
    ) -> list[int]:
        """Do what `add` does, for a thread whose caller holds `writing()` and leaves the store alone meanwhile."""
        ids = self._photos.append(photos)
        self._files.put(files)
        self._failures.delete([file.path for file in files])
        if failures:
            self._failures.put(failures)
            self._files.delete([failure.path for failure in failures])
        return ids

    def remove_failures(self, paths: Iterable[Path]) -> None:
        """Forget that these files could not be read, in one commit."""
        with self.writing():
            self._failures.delete(paths)

    def mark_missing(self, paths: Iterable[Path]) -> None:
        """Mark files as missing, in one commit. Searches no longer find them; `add` brings them back."""
        with self.writing():
            rows = self._files.read_paths(paths)
            if rows.num_rows:
                column = rows.schema.get_field_index("missing")
                marked = pa.array(np.ones(rows.num_rows, bool))
                self._files.upsert(rows.set_column(column, FILE_SCHEMA.field("missing"), marked))

    def prune(self) -> int:
        """Delete missing files and photos without a file; return how many photos were deleted.

        The photo with the highest id stays, and no search finds it, until a newer photo comes: its id must not be given
        to another photo while a FAISS file or a reader still knows it.
        """
        with self.writing():
            if self._files.table.count("missing"):
                self._files.table.delete("missing")
            gone = np.setdiff1d(self._photos.ids[:-1], self.list_live_ids())
            if len(gone):
                # Compaction copies the photos that stay, which is worth it when many were deleted.
                is_worth_copying = len(gone) > len(self._photos.ids) // 10
                self._photos.delete(gone)
                self.captions.forget(gone)
                self._compact_photos(0 if is_worth_copying else MAX_FRAGMENTS)
            return len(gone)

    def optimize(self) -> None:
        """Merge small files and remove old versions; the photos are copied only when they lie in many pieces.

        Raises IndexStateError when the disk is full.
        """
        with self.writing():
            self._compact_photos(MAX_FRAGMENTS)
            small = [*self._tables()[1:], self.captions.table]
            for table in filter(None, small):
                table.compact(_SMALL_TABLE_FRAGMENTS)

    def _compact_photos(self, max_fragments: int) -> None:
        """Compact the table of photos if the disk has room for the copy that is made before the old rows go."""
        num_bytes = _measure_folder(self.folder / TABLES_FOLDER / "photos.lance")
        if shutil.disk_usage(self.folder).free > 1.2 * num_bytes:
            self._photos.table.compact(max_fragments)

    def measure_disk_bytes(self) -> int:
        """Return the bytes of all files in the index folder that stay there when nobody writes."""
        return _measure_folder(self.folder)

    def _tables(self) -> list[Table]:
        return [self._photos.table, self._files.table, self._failures.table, self.texts.table]


def _claim_folder(folder: Path) -> None:
    """Make the folder, or check that it is an index or empty, before anything in it is replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise IndexStateError(
            f"An index cannot be made at {folder}: {error.strerror}. Give another --index."
        ) from error
    # A folder without a manifest is new, or its creation was interrupted after the lock was taken.
    ours = {LOCK_NAME, PROCESS_NAME, CACHE_FOLDER, TABLES_FOLDER, f"{FILE_NAME}.new"}
    if FILE_NAME not in names and names and not (LOCK_NAME in names and names <= ours):
        raise IndexStateError(
            f"{folder} is not empty and holds no index. Give a new or an empty folder as --index."
        )


def _measure_folder(folder: Path) -> int:
    """Return the bytes of all files below a folder, except those that are there only while somebody writes."""
    num_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in set(names) - {PROCESS_NAME}:
            try:
                num_bytes += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # A writer replaced the file meanwhile.
                continue
    return num_bytes
