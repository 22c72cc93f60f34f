"""Open LanceDB tables at one version, write them in commits, and put Lance's errors in words for a person.

A table is pinned to the version it was opened at, so that row ids and rows belong together, until `refresh` or a write
of our own moves it on. Lance is not fork-safe: worker processes are spawned. Only this module imports lancedb.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from engine.errors import IndexStateError

# Compaction copies the whole table, blobs too, so it has to be worth it: measured, a scan of the ids
# of 100,000 photos opens one file a fragment, some milliseconds for a hundred of them.
MAX_FRAGMENTS = 128


class VanishedError(IndexStateError):
    """The version that was being read has been compacted away by a writer: refresh, then read again."""


class Refreshable(Protocol):
    """What reads tables at one version, and can move on to the newest."""

    def refresh(self) -> None: ...


Owner = TypeVar("Owner", bound=Refreshable)
P = ParamSpec("P")
T = TypeVar("T")


def retry_on_newest(method: Callable[Concatenate[Owner, P], T]) -> Callable[Concatenate[Owner, P], T]:
    """Read once more from the newest version when another process compacted this one away."""

    @wraps(method)
    def read_again(self: Owner, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except VanishedError:
            self.refresh()
            return method(self, *args, **kwargs)

    return read_again


class Database:
    """The folder that holds the tables."""

    def __init__(self, folder: Path) -> None:
        import lancedb  # late: 1.7 s

        self.folder = folder
        with _explain_errors(folder):
            self._connection = lancedb.connect(str(folder))

    def create(self, name: str, schema: pa.Schema) -> Table:
        """Make an empty table."""
        with _explain_errors(self.folder):
            return Table(self._connection.create_table(name, schema=schema), self.folder)

    def open_if_exists(self, name: str) -> Table | None:
        """None for a table that older versions of qseek did not make."""
        return self.open(name) if (self.folder / f"{name}.lance").exists() else None

    def open(self, name: str) -> Table:
        try:
            return Table(self._connection.open_table(name), self.folder)
        except (OSError, RuntimeError, ValueError) as error:
            raise IndexStateError(
                f"table {name!r} of the index at {self.folder.parent} is missing or damaged ({error}); "
                "restore it, or index again with `qseek index --reindex`"
            ) from error


class Table:
    """A table at one version; every write is one commit."""

    def __init__(self, handle: Any, folder: Path) -> None:
        self._handle = handle
        self._folder = folder
        self.version: int = handle.version

    def refresh(self) -> None:
        """Move on to the newest version."""
        with _explain_errors(self._folder):
            self._handle.checkout_latest()
            self.version = self._handle.version

    def count(self, where: str | None = None) -> int:
        with _explain_errors(self._folder):
            return int(self._handle.count_rows(where))

    def read(self, columns: Sequence[str], where: str | None = None, *, row_ids: bool = False) -> pa.Table:
        """Rows as an Arrow table; with row_ids also `_rowid`, valid at this version."""
        query = self._handle.search().select(list(columns))
        if where is not None:
            query = query.where(where)
        with _explain_errors(self._folder):
            return (query.with_row_id(True) if row_ids else query).to_arrow()

    def take(self, row_ids: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Rows by their ids, in an order of Lance's choice."""
        with _explain_errors(self._folder):
            return self._handle.take_row_ids(row_ids.tolist()).select(list(columns)).to_arrow()

    def read_blobs(self, column: str, row_ids: np.ndarray) -> list[bytes | None]:
        """Blobs of one column in the order of row_ids, None where there is none."""
        with _explain_errors(self._folder):
            return self._handle.fetch_blobs(column, row_ids.tolist()).to_pylist()

    def append(self, rows: pa.Table) -> None:
        with self._commit():
            self._handle.add(rows)

    def upsert(self, rows: pa.Table, on: Sequence[str]) -> None:
        """Replace the rows that agree in the columns `on`, and append the others."""
        with self._commit():
            merge = self._handle.merge_insert(list(on))
            merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def delete(self, where: str) -> None:
        with self._commit():
            self._handle.delete(where)

    def compact(self, max_fragments: int) -> None:
        """Merge fragments and forget old versions, once there are more fragments than that.

        Only under the writer's lock: readers in other processes get VanishedError and refresh.
        """
        with self._commit():
            if self._handle.stats()["fragment_stats"]["num_fragments"] > max_fragments:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # about concurrent readers, see above
                    self._handle.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)

    @contextmanager
    def _commit(self) -> Iterator[None]:
        with _explain_errors(self._folder):
            try:
                yield
            finally:
                self.version = self._handle.version


@contextmanager
def _explain_errors(folder: Path) -> Iterator[None]:
    """Turn the errors that a user can act on into IndexStateError, and let bugs through."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        # Lance raises RuntimeError with the operating system's words in it, and no errno
        if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):
            raise IndexStateError(
                f"the disk that holds {folder} is full; everything committed before is safe: "
                "free some space and run the same command again"
            ) from error
        if "not found" in str(error).lower():
            raise VanishedError(
                f"the index at {folder} was rewritten while it was read, or files are missing from it; "
                f"ask again ({error})"
            ) from error
        raise


def quote_bytes(value: bytes) -> str:
    """SQL literal of any bytes, quotes and newlines included."""
    return f"X'{value.hex()}'"


def make_ids_condition(ids: Sequence[int], column: str = "id") -> str:
    return f"{column} IN ({','.join(map(str, set(ids)))})"
