"""Keep rows that are known by their path: the files of photos, and the files that could not be read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from engine.index.database import Table, quote_bytes

KEY = ("root", "path")
_SEPARATOR = os.fsencode(os.sep)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file that holds a photo.

    root: the folder that was indexed. path: the absolute path, below root. size, mtime_ns: bytes and modification time
    of the file when its digest was computed. missing: whether it was not there when its root was last walked.
    """

    root: Path
    path: Path
    size: int
    mtime_ns: int
    digest: str
    missing: bool = False


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """A file that could not be read. reason: why, in words. root, path, size, mtime_ns: see FileRecord."""

    root: Path
    path: Path
    size: int
    mtime_ns: int
    reason: str


Record = TypeVar("Record", FileRecord, FailureRecord)


class PathTable(Generic[Record]):
    """A table with one row for each path.

    Callers give and get absolute paths; the table keeps a root and the path below it, both as bytes.
    """

    def __init__(self, table: Table, record: type[Record], schema: pa.Schema) -> None:
        self.table = table
        self._record: type[Record] = record
        self._schema = schema
        self._roots: tuple[int, list[bytes]] = (-1, [])

    def read_records(self, root: Path | None = None) -> dict[Path, Record]:
        """Return the records by absolute path: all, or those below a root, from whichever root they were indexed."""
        rows = self.table.read(self._schema.names)
        if root is None:
            return self._to_records(rows)
        parts = []
        for known in self.roots():
            rows_of_root = rows.filter(pc.equal(rows["root"], known))
            if _is_below(known, os.fsencode(root)):
                parts.append(rows_of_root)
            elif _is_below(os.fsencode(root), known):
                inner = _make_relative(os.fsencode(root), known)
                parts.append(rows_of_root.filter(pc.starts_with(rows_of_root["path"], inner + _SEPARATOR)))
        return self._to_records(pa.concat_tables(parts)) if parts else {}

    def put(self, records: Sequence[Record]) -> None:
        """Write records by absolute path, the last of several for one path; two commits where roots overlap, else
        one.
        """
        if not records:
            return
        latest = {record.path: record for record in records}
        roots = {os.fsencode(record.root) for record in latest.values()}
        others = [
            known
            for known in self.roots()
            if any(known != root and (_is_below(known, root) or _is_below(root, known)) for root in roots)
        ]
        condition = _make_paths_condition(latest, others)
        self.upsert(self._to_rows(latest.values()))
        if condition and self.table.count(condition):
            self._drop_other_roots(latest, others)

    def read_paths(self, paths: Iterable[Path]) -> pa.Table:
        """Return the rows of those of these absolute paths that the table has."""
        condition = _make_paths_condition(paths, self.roots())
        return self.table.read(self._schema.names, condition or "false")

    def upsert(self, rows: pa.Table) -> None:
        """Replace or append rows by root and path, in one commit."""
        roots = {*self.roots(), *pc.unique(rows["root"]).to_pylist()}
        self.table.upsert(rows, KEY)
        self._roots = (self.table.version, sorted(roots))  # A scan of the table for each batch would add up.

    def delete(self, paths: Iterable[Path]) -> None:
        """Delete the rows of these absolute paths; paths that have no row are ignored."""
        condition = _make_paths_condition(paths, self.roots())
        if condition and self.table.count(condition):
            roots = self.roots()
            self.table.delete(condition)
            self._roots = (self.table.version, roots)

    def roots(self) -> list[bytes]:
        """Return every root that has a row, or had one."""
        version = self.table.version
        if self._roots[0] != version:
            roots = pc.unique(self.table.read(["root"])["root"]).to_pylist()
            self._roots = (version, sorted(roots))
        return self._roots[1]

    def _drop_other_roots(self, latest: dict[Path, Record], others: list[bytes]) -> None:
        for root in others:
            moved = [path for path, record in latest.items() if os.fsencode(record.root) != root]
            condition = _make_paths_condition(moved, [root])
            if condition:
                self.table.delete(condition)

    def _to_rows(self, records: Iterable[Record]) -> pa.Table:
        columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        for record in records:
            root = os.fsencode(record.root)
            columns["root"].append(root)
            columns["path"].append(_make_relative(os.fsencode(record.path), root))
            for field in dataclasses.fields(record)[2:]:
                value = getattr(record, field.name)
                if isinstance(value, str):
                    # A reason may quote a file name whose bytes are no valid text.
                    value = value.encode("utf-8", "backslashreplace").decode("utf-8")
                columns[field.name].append(value)
        return pa.table(columns, schema=self._schema)

    def _to_records(self, rows: pa.Table) -> dict[Path, Record]:
        columns = [rows[name].to_pylist() for name in self._schema.names]
        roots = {root: Path(os.fsdecode(root)) for root in set(columns[0])}
        records: dict[Path, Record] = {}
        for root, below, *fields in zip(*columns, strict=True):
            path = join_path(root, below)
            records[path] = self._record(roots[root], path, *fields)
        return records


def join_path(root: bytes, below: bytes) -> Path:
    """Return the absolute path of a root and the path below it."""
    return Path(os.fsdecode(os.path.join(root, below)))


def _make_relative(path: bytes, root: bytes) -> bytes:
    """Return a path relative to its root. Raises ValueError for a path that is not below the root."""
    prefix = root.rstrip(_SEPARATOR) + _SEPARATOR
    if not path.startswith(prefix):
        raise ValueError(f"{os.fsdecode(path)!r} is not below {os.fsdecode(root)!r}.")
    return path[len(prefix) :]


def _is_below(path: bytes, root: bytes) -> bool:
    """Return whether a path is the root or below it."""
    return path == root or path.startswith(root.rstrip(_SEPARATOR) + _SEPARATOR)


def _make_paths_condition(paths: Iterable[Path], roots: Sequence[bytes]) -> str:
    """Return the SQL condition for the rows of absolute paths under any of the roots, "" when no row can match."""
    encoded = [os.fsencode(path) for path in paths]
    conditions = []
    for root in roots:
        inside = [_make_relative(path, root) for path in encoded if path != root and _is_below(path, root)]
        if inside:
            values = ",".join(quote_bytes(path) for path in inside)
            conditions.append(f"(root = {quote_bytes(root)} AND path IN ({values}))")
    return " OR ".join(conditions)
