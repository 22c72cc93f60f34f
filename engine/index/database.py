"""Open LanceDB tables at one version, write them in commits, and put Lance's errors in words for a person.

A table stays at the version at which it was opened, so that row ids and rows belong together, until `refresh` or a
write of this process moves it on. Lance is not fork-safe, so worker processes must be spawned. Only this module imports
lancedb.
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

# Compaction copies the whole table with its blobs, so it must be worth it. A scan of the ids opens one file for each
# fragment; measured with 100,000 photos, a hundred fragments cost some milliseconds.
MAX_FRAGMENTS = 128


class VanishedError(IndexStateError):
    """A writer compacted the table and removed the version that was being read: refresh, then read again."""


class Refreshable(Protocol):
    """An object that reads tables at one version and can move on to the newest one."""

    def refresh(self) -> None: ...


Owner = TypeVar("Owner", bound=Refreshable)
P = ParamSpec("P")
T = TypeVar("T")


def retry_on_newest(method: Callable[Concatenate[Owner, P], T]) -> Callable[Concatenate[Owner, P], T]:
    """Make a method read once more from the newest version when another process removed this version."""

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
        import lancedb  # This import takes 1.7 s.

        self.folder = folder
        with _explain_errors(folder):
            self._connection = lancedb.connect(str(folder))

    def create(self, name: str, schema: pa.Schema) -> Table:
        """Create an empty table."""
        with _explain_errors(self.folder):
            return Table(self._connection.create_table(name, schema=schema), self.folder)

    def open_if_exists(self, name: str) -> Table | None:
        """Open a table, or return None for one that this index, made by an older qseek, does not have."""
        return self.open(name) if (self.folder / f"{name}.lance").exists() else None

    def open(self, name: str) -> Table:
        """Open a table. Raises IndexStateError when it is missing or damaged."""
        try:
            return Table(self._connection.open_table(name), self.folder)
        except (OSError, RuntimeError, ValueError) as error:
            raise IndexStateError(
                f"Table {name!r} of the index at {self.folder.parent} is missing or damaged ({error}). "
                "Restore it, or index again with `qseek index --reindex`."
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

    def count(self, condition: str | None = None) -> int:
        """Return how many rows meet an SQL condition, or all rows."""
        with _explain_errors(self._folder):
            return int(self._handle.count_rows(condition))

    def read(
        self, columns: Sequence[str], condition: str | None = None, *, row_ids: bool = False
    ) -> pa.Table:
        """Return columns of the rows that meet an SQL condition, or of all rows, as an Arrow table.

        row_ids: add the column `_rowid`, which is valid at this version.
        """
        query = self._handle.search().select(list(columns))
        if condition is not None:
            query = query.where(condition)
        with _explain_errors(self._folder):
            return (query.with_row_id(True) if row_ids else query).to_arrow()

    def take(self, row_ids: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Return columns of the rows with these row ids, in an order that Lance chooses."""
        with _explain_errors(self._folder):
            return self._handle.take_row_ids(row_ids.tolist()).select(list(columns)).to_arrow()

    def read_blobs(self, column: str, row_ids: np.ndarray) -> list[bytes | None]:
        """Return the blobs of a column in the order of `row_ids`, None where there is none."""
        with _explain_errors(self._folder):
            return self._handle.fetch_blobs(column, row_ids.tolist()).to_pylist()

    def append(self, rows: pa.Table) -> None:
        """Append rows in one commit."""
        with self._commit():
            self._handle.add(rows)

    def upsert(self, rows: pa.Table, on: Sequence[str]) -> None:
        """Replace the rows whose columns `on` agree with new rows, and append the other new rows, in one commit."""
        with self._commit():
            merge = self._handle.merge_insert(list(on))
            merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def delete(self, condition: str) -> None:
        """Delete the rows that meet an SQL condition, in one commit."""
        with self._commit():
            self._handle.delete(condition)

    def compact(self, max_fragments: int) -> None:
        """Merge the fragments and remove old versions, if there are more than `max_fragments` fragments.

        The caller holds the writer's lock. Readers in other processes get VanishedError and refresh.
        """
        with self._commit():
            if self._handle.stats()["fragment_stats"]["num_fragments"] > max_fragments:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # It warns of readers in other processes.
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
        # Lance raises a RuntimeError that quotes the operating system and has no errno.
        if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):
            raise IndexStateError(
                f"The disk that holds {folder} is full. Everything committed before is safe: free some space and run "
                "the same command again."
            ) from error
        if "not found" in str(error).lower():
            raise VanishedError(
                f"The index at {folder} was rewritten while it was read, or files are missing from it ({error}). Ask "
                "again."
            ) from error
        raise


def quote_bytes(value: bytes) -> str:
    """Return the SQL literal of any bytes, which may hold quotes and newlines."""
    return f"X'{value.hex()}'"


def make_ids_condition(ids: Sequence[int], column: str = "id") -> str:
    """Return the SQL condition that a column holds one of these numbers."""
    return f"{column} IN ({','.join(map(str, set(ids)))})"
