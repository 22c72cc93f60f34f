"""The index on disk: photos, their files, texts and failures in LanceDB; the truth that FAISS follows.

Q queries and E embedding as in the manifest; N, T rows. A Store sees the state it was opened at, its own
writes, and after `refresh` those of others. Writing takes the writer's lock by itself; hold `writing()`
around a whole build so that nobody else comes between two batches.
"""

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import IO, Concatenate, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import IndexStateError
from engine.index.files import FailureRecord, FileRecord, PathTable, absolute
from engine.index.manifest import FILE_NAME, Manifest
from engine.index.tables import (
    FAILURE_SCHEMA,
    FILE_SCHEMA,
    MAX_FRAGMENTS,
    Database,
    Table,
    VanishedError,
    photo_schema,
    text_literal,
    text_schema,
)
from engine.types import Photo

__all__ = ["FailureRecord", "FileRecord", "NewPhoto", "Store"]

CACHE_FOLDER = "faiss"
_SMALL_TABLE_FRAGMENTS = 8  # files, failures and texts hold no vectors worth sparing

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class NewPhoto:
    """A photo to add: vectors_QE are float16 unit vectors; features are the patches' bytes or None."""

    digest: str
    width: int
    height: int
    vectors_QE: np.ndarray
    features: bytes | None = None


@dataclass(frozen=True)
class _PhotoRows:
    """Where each photo lies at one version of the table; ids ascend, the others follow them."""

    version: int
    ids: np.ndarray
    row_ids: np.ndarray
    digests: pa.Array


def _retried(
    method: Callable[Concatenate["Store", P], T],
) -> Callable[Concatenate["Store", P], T]:
    """Read once more from the newest version when another process compacted this one away."""

    @wraps(method)
    def retried(self: "Store", *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except VanishedError:
            self.refresh()
            return method(self, *args, **kwargs)

    return retried


class Store:
    """One index folder. Made by `Store.create` or `Store.open`."""

    def __init__(self, folder: Path, manifest: Manifest, tables: Sequence[Table]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._photos, files, failures, self._texts = tables
        self._files = PathTable(files, FileRecord, FILE_SCHEMA)
        self._failures = PathTable(failures, FailureRecord, FAILURE_SCHEMA)
        self._writer = threading.RLock()
        self._writing = 0
        self._rows: _PhotoRows | None = None
        self._live: tuple[tuple[int, int], np.ndarray] | None = None
        self._known: tuple[int, dict[str, int]] = (-1, {})

    @classmethod
    def create(cls, folder: Path, manifest: Manifest, *, replace: bool = False) -> "Store":
        """Make an empty index; with replace, in place of one that is there.

        The manifest is written last: a folder without one holds no index. Raises IndexStateError: there
        is one already, another process writes it, or the disk is full.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if (folder / FILE_NAME).exists():
                if not replace:
                    raise IndexStateError(
                        f"there is an index at {folder} already; add to it with `qseek index`, "
                        "or make it anew with `qseek index --reindex`"
                    )
                (folder / FILE_NAME).unlink()
            shutil.rmtree(folder / CACHE_FOLDER, ignore_errors=True)
            database = Database(folder / "tables")
            schemas = _schemas(manifest)
            tables = [database.create(name, schema) for name, schema in schemas.items()]
            manifest.save(folder)
        return cls(folder, manifest, tables)

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Open an index to read or to add to. Raises IndexStateError: none, damaged, or a newer schema."""
        folder = Path(folder)
        manifest = Manifest.load(folder)
        database = Database(folder / "tables")
        return cls(folder, manifest, [database.open(name) for name in _schemas(manifest)])

    def refresh(self) -> None:
        """See what other processes have written since."""
        for table in self._tables():
            table.refresh()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock; may be nested. Raises IndexStateError when another process has it."""
        with self._writer:
            if self._writing:
                self._writing += 1
                try:
                    yield
                finally:
                    self._writing -= 1
                return
            with _locked(self.folder):
                self.refresh()
                self._writing = 1
                try:
                    yield
                finally:
                    self._writing = 0

    # What is there

    @property
    def version(self) -> int:
        """Changes whenever the photos table does."""
        return self._photos.version

    @property
    def texts_version(self) -> int:
        return self._texts.version

    @property
    def num_photos(self) -> int:
        """Photos that have a file: those a search can find."""
        return len(self.live_ids())

    @property
    def num_files(self) -> int:
        """Paths that hold a photo and are not missing."""
        return self._files.table.count("NOT missing")

    @property
    def num_texts(self) -> int:
        return self._texts.count()

    @_retried
    def files(self, root: Path | None = None) -> dict[Path, FileRecord]:
        """By absolute path: all, or those below root. Missing ones too."""
        return self._files.records(root)

    @_retried
    def failures(self, root: Path | None = None) -> dict[Path, FailureRecord]:
        """By absolute path: all, or those below root."""
        return self._failures.records(root)

    @_retried
    def photo_ids(self) -> dict[str, int]:
        """The id of every digest, photos without files too."""
        return dict(self._ids_by_digest())

    @_retried
    def live_ids(self) -> np.ndarray:
        """Ascending int64 ids of the photos with a file that is not missing: what may be found."""
        versions = (self._photos.version, self._files.table.version)
        if self._live is None or self._live[0] != versions:
            rows = self._photo_rows()
            digests = self._files.table.read(["digest"], "NOT missing")["digest"]
            live = pc.is_in(rows.digests, value_set=digests.combine_chunks())
            self._live = (versions, rows.ids[live.to_numpy(zero_copy_only=False)])
        return self._live[1]

    @_retried
    def photos(self, ids: Sequence[int] | np.ndarray) -> list[Photo]:
        """Photos in the order of ids, with the paths that are not missing.

        Raises IndexStateError for an id that is not there.
        """
        if len(ids) == 0:
            return []
        order, rows = self._take(ids, ["digest", "width", "height"])
        digests, widths, heights = (rows[name].to_pylist() for name in ("digest", "width", "height"))
        wanted = ",".join(text_literal(digest) for digest in digests)
        where = f"NOT missing AND digest IN ({wanted})"
        files = self._files.table.read(["root", "path", "digest"], where)
        paths: dict[str, list[Path]] = {digest: [] for digest in digests}
        for file in files.to_pylist():
            paths[file["digest"]].append(absolute(file["root"], file["path"]))
        return [
            Photo(int(id_), digests[row], widths[row], heights[row], tuple(sorted(paths[digests[row]])))
            for id_, row in zip(ids, order.tolist(), strict=True)
        ]

    @_retried
    def photo_at(self, path: Path) -> Photo | None:
        """The photo at an absolute path; None when that path is not indexed or missing."""
        rows = self._files.of_paths([path]).filter(pc.invert(pc.field("missing")))
        if rows.num_rows == 0:
            return None
        id_ = self._ids_by_digest().get(rows["digest"][0].as_py())
        return None if id_ is None else self.photos([id_])[0]

    @_retried
    def vectors(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """ITC vectors (N, Q, E) float16 in the order of ids."""
        shape = (self.manifest.num_queries, self.manifest.embed_dim)
        if len(ids) == 0:
            return np.zeros((0, *shape), np.float16)
        order, rows = self._take(ids, ["vectors"])
        return _fixed_lists(rows["vectors"])[order].reshape(-1, *shape)

    def iter_vectors(self, after_id: int = -1, batch: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids int64, vectors (n, Q, E) float16) of every photo in id order, n <= batch."""
        ids = self._photo_rows().ids
        ids = ids[np.searchsorted(ids, after_id, side="right") :]
        for start in range(0, len(ids), batch):
            part = ids[start : start + batch]
            yield part, self.vectors(part)

    @_retried
    def features(self, ids: Sequence[int] | np.ndarray) -> list[bytes | None]:
        """Patches' bytes in the order of ids, None where they are not kept."""
        return self._photos.blobs("features", self._row_ids(ids)) if len(ids) else []

    # What is written

    def add(
        self,
        photos: Sequence[NewPhoto],
        files: Sequence[FileRecord] = (),
        failures: Sequence[FailureRecord] = (),
    ) -> list[int]:
        """Commit one batch; the ids of the photos, in their order.

        Photos come before files, so that a kill never leaves a file without its photo. A digest that is
        there, or twice in the batch, is added once. A path in files leaves the failures and the other way
        round. Raises IndexStateError when the disk is full.
        """
        with self.writing():
            known = self._ids_by_digest()
            new: dict[str, NewPhoto] = {}
            for photo in photos:
                if photo.digest not in known:
                    new.setdefault(photo.digest, photo)
            if new:
                next_id = max(known.values(), default=-1) + 1
                ids = range(next_id, next_id + len(new))
                self._photos.append(self._photo_table(ids, list(new.values())))
                known = {**known, **dict(zip(new, ids, strict=True))}
                self._known = (self._photos.version, known)
            self.put_files(files)
            if failures:
                self._failures.put(failures)
                self._files.delete([failure.path for failure in failures])
            return [known[photo.digest] for photo in photos]

    def put_files(self, files: Sequence[FileRecord]) -> None:
        """Upsert by path, in one commit; their failures are forgotten."""
        with self.writing():
            self._files.put(files)
            self._failures.delete([file.path for file in files])

    def remove_failures(self, paths: Iterable[Path]) -> None:
        with self.writing():
            self._failures.delete(paths)

    def mark_missing(self, paths: Iterable[Path]) -> None:
        """Their photos are no longer found, and come back with `put_files`; one commit."""
        with self.writing():
            rows = self._files.of_paths(paths)
            if rows.num_rows:
                column = rows.schema.get_field_index("missing")
                marked = pa.array(np.ones(rows.num_rows, bool))
                self._files.upsert(rows.set_column(column, FILE_SCHEMA.field("missing"), marked))

    def prune(self) -> int:
        """Forget missing files and photos without any file; how many photos.

        The photo with the highest id stays, unfindable, until a newer one comes: its id must not be
        given to another photo while a FAISS file or a reader still knows it.
        """
        with self.writing():
            if self._files.table.count("missing"):
                self._files.table.delete("missing")
            gone = np.setdiff1d(self._photo_rows().ids[:-1], self.live_ids())
            if len(gone):
                self._photos.delete(f"id IN ({','.join(map(str, gone.tolist()))})")
            return len(gone)

    def optimize(self) -> None:
        """Merge small files and forget old versions; the photos only when they lie in many pieces.

        Raises IndexStateError when the disk is full.
        """
        with self.writing():
            for table in self._tables():
                spare = table is self._photos
                if not spare or shutil.disk_usage(self.folder).free > 1.2 * self.disk_bytes():
                    table.compact(MAX_FRAGMENTS if spare else _SMALL_TABLE_FRAGMENTS)

    def disk_bytes(self) -> int:
        """Size of everything in the index folder."""
        total = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:  # a writer replaced it meanwhile
                    continue
        return total

    # Texts

    def add_texts(self, texts: Sequence[str], vectors_TE: np.ndarray) -> list[int]:
        """Commit texts with their unit vectors, one batch; their ids. A text already there is kept."""
        with self.writing():
            rows = self._texts.read(["id", "text"])
            known = dict(zip(rows["text"].to_pylist(), rows["id"].to_pylist(), strict=True))
            next_id = max(known.values(), default=-1) + 1
            places = {text: place for place, text in reversed(list(enumerate(texts))) if text not in known}
            new = sorted(places, key=places.__getitem__)
            if new:
                vectors = np.asarray(vectors_TE)[[places[text] for text in new]]
                ids = range(next_id, next_id + len(new))
                columns = [ids, new, _to_fixed_lists(vectors, self.manifest.embed_dim)]
                self._texts.append(pa.table(columns, schema=text_schema(self.manifest.embed_dim)))
                known.update(zip(new, ids, strict=True))
            return [known[text] for text in texts]

    @_retried
    def texts(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Texts in the order of ids. Raises IndexStateError for an id that is not there."""
        rows = self._texts.read(["id", "text"])
        known = dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
        missing = [int(id_) for id_ in ids if int(id_) not in known]
        if missing:
            raise IndexStateError(f"text {missing[0]} is not in the index at {self.folder}; ask again")
        return [known[int(id_)] for id_ in ids]

    def iter_text_vectors(
        self, after_id: int = -1, batch: int = 65536
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids int64, vectors (n, E) float16) of every text in id order, n <= batch."""
        rows = self._texts.read(["id", "vector"], f"id > {int(after_id)}")
        ids = rows["id"].to_numpy()
        order = np.argsort(ids)
        for start in range(0, len(ids), batch):
            part = order[start : start + batch]
            yield ids[part], _fixed_lists(rows["vector"].take(part))

    # Rows

    def _tables(self) -> list[Table]:
        return [self._photos, self._files.table, self._failures.table, self._texts]

    def _photo_rows(self) -> _PhotoRows:
        version = self._photos.version
        if self._rows is None or self._rows.version != version:
            rows = self._photos.read(["id", "digest"], row_ids=True)
            rows = rows.take(pc.sort_indices(rows["id"]))
            digests = rows["digest"].combine_chunks()
            self._rows = _PhotoRows(version, rows["id"].to_numpy(), rows["_rowid"].to_numpy(), digests)
        return self._rows

    def _ids_by_digest(self) -> dict[str, int]:
        if self._known[0] != self._photos.version:
            rows = self._photo_rows()
            ids = dict(zip(rows.digests.to_pylist(), rows.ids.tolist(), strict=True))
            self._known = (rows.version, ids)
        return self._known[1]

    def _row_ids(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        rows = self._photo_rows()
        wanted = np.asarray(ids, dtype=np.int64)
        places = np.searchsorted(rows.ids, wanted)
        found = places < len(rows.ids)
        found[found] = rows.ids[places[found]] == wanted[found]
        if not found.all():
            raise IndexStateError(
                f"photo {wanted[~found][0]} is not in the index at {self.folder}; was it pruned? ask again"
            )
        return rows.row_ids[places]

    def _take(self, ids: Sequence[int] | np.ndarray, columns: list[str]) -> tuple[np.ndarray, pa.Table]:
        """Rows of some photos, and for each of ids the row that is its."""
        unique, inverse = np.unique(np.asarray(ids, dtype=np.int64), return_inverse=True)
        rows = self._photos.take(self._row_ids(unique), ["id", *columns])
        return np.argsort(rows["id"].to_numpy())[inverse], rows

    def _photo_table(self, ids: range, photos: list[NewPhoto]) -> pa.Table:
        shape = (self.manifest.num_queries, self.manifest.embed_dim)
        vectors = np.stack([photo.vectors_QE for photo in photos])
        if vectors.shape[1:] != shape:
            raise ValueError(f"vectors of a photo are {vectors.shape[1:]}, the index keeps {shape}")
        columns = [
            ids,
            [photo.digest for photo in photos],
            [photo.width for photo in photos],
            [photo.height for photo in photos],
            _to_fixed_lists(vectors, shape[0] * shape[1]),
            pa.array([photo.features for photo in photos], pa.large_binary()),
        ]
        return pa.table(columns, schema=photo_schema(*shape))


def _schemas(manifest: Manifest) -> dict[str, pa.Schema]:
    return {
        "photos": photo_schema(manifest.num_queries, manifest.embed_dim),
        "files": FILE_SCHEMA,
        "failures": FAILURE_SCHEMA,
        "texts": text_schema(manifest.embed_dim),
    }


def _to_fixed_lists(vectors: np.ndarray, width: int) -> pa.Array:
    flat = np.ascontiguousarray(vectors, dtype=np.float16).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), width)


def _fixed_lists(column: pa.ChunkedArray) -> np.ndarray:
    """(N, width) array of a fixed_size_list column."""
    return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold <folder>/lock, or raise at once; the system frees it when the process ends, however it does."""
    try:
        file: IO[str] = open(folder / "lock", "a+")  # noqa: SIM115 -- closed below
    except OSError as error:
        raise IndexStateError(f"the index at {folder} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            process = file.read().strip() or "unknown"
            raise IndexStateError(
                f"another qseek (process {process}) is writing the index at {folder}; "
                "wait until it is done, or give another --index"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
