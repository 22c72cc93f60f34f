"""Rows known by their path: the files of the photos, and the photos that could not be read."""

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
    """One path that holds a photo.

    root: folder that was indexed. path: absolute, below root. size in bytes, mtime_ns: as the file had
    them when its digest was made. missing: it was not there when its root was last walked.
    """

    root: Path
    path: Path
    size: int
    mtime_ns: int
    digest: str
    missing: bool = False


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """One path that could not be read, with the reason in words; the rest as in FileRecord."""

    root: Path
    path: Path
    size: int
    mtime_ns: int
    reason: str


Record = TypeVar("Record", FileRecord, FailureRecord)


class PathTable(Generic[Record]):
    """A table with one row a path; absolute paths outside, (root, path below it) as bytes inside."""

    def __init__(self, table: Table, record: type[Record], schema: pa.Schema) -> None:
        self.table = table
        self._record: type[Record] = record
        self._schema = schema
        self._roots: tuple[int, list[bytes]] = (-1, [])

    def read_records(self, root: Path | None = None) -> dict[Path, Record]:
        """By absolute path: all, or those below root whatever root they were indexed from."""
        rows = self.table.read(self._schema.names)
        if root is None:
            return self._to_records(rows)
        parts = []
        for known in self.roots():
            of_known = rows.filter(pc.equal(rows["root"], known))
            if _is_below(known, os.fsencode(root)):
                parts.append(of_known)
            elif _is_below(os.fsencode(root), known):
                inner = _below(os.fsencode(root), known)
                parts.append(of_known.filter(pc.starts_with(of_known["path"], inner + _SEPARATOR)))
        return self._to_records(pa.concat_tables(parts)) if parts else {}

    def put(self, read_records: Sequence[Record]) -> None:
        """Upsert by absolute path, of twice the same the last; one commit, two where roots overlap."""
        if not read_records:
            return
        latest = {record.path: record for record in read_records}
        roots = {os.fsencode(record.root) for record in latest.values()}
        others = [
            known
            for known in self.roots()
            if any(known != root and (_is_below(known, root) or _is_below(root, known)) for root in roots)
        ]
        where = _make_paths_condition(latest, others)
        self.upsert(self._to_rows(latest.values()))
        if where and self.table.count(where):
            self._drop_other_roots(latest, others)

    def read_paths(self, paths: Iterable[Path]) -> pa.Table:
        """The rows of these absolute paths, those that are there."""
        where = _make_paths_condition(paths, self.roots())
        return self.table.read(self._schema.names, where or "false")

    def upsert(self, rows: pa.Table) -> None:
        roots = {*self.roots(), *pc.unique(rows["root"]).to_pylist()}
        self.table.upsert(rows, KEY)
        self._roots = (self.table.version, sorted(roots))  # known: a scan for each batch would add up

    def delete(self, paths: Iterable[Path]) -> None:
        """Forget these absolute paths; those that are not there are ignored."""
        where = _make_paths_condition(paths, self.roots())
        if where and self.table.count(where):
            roots = self.roots()
            self.table.delete(where)
            self._roots = (self.table.version, roots)

    def roots(self) -> list[bytes]:
        """Every root that has a row, or had one."""
        version = self.table.version
        if self._roots[0] != version:
            roots = pc.unique(self.table.read(["root"])["root"]).to_pylist()
            self._roots = (version, sorted(roots))
        return self._roots[1]

    def _drop_other_roots(self, latest: dict[Path, Record], others: list[bytes]) -> None:
        for root in others:
            moved = [path for path, record in latest.items() if os.fsencode(record.root) != root]
            where = _make_paths_condition(moved, [root])
            if where:
                self.table.delete(where)

    def _to_rows(self, read_records: Iterable[Record]) -> pa.Table:
        columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        for record in read_records:
            root = os.fsencode(record.root)
            columns["root"].append(root)
            columns["path"].append(_below(os.fsencode(record.path), root))
            for field in dataclasses.fields(record)[2:]:
                value = getattr(record, field.name)
                if isinstance(value, str):  # a reason may quote a file name with bytes that are no text
                    value = value.encode("utf-8", "backslashreplace").decode("utf-8")
                columns[field.name].append(value)
        return pa.table(columns, schema=self._schema)

    def _to_records(self, rows: pa.Table) -> dict[Path, Record]:
        columns = [rows[name].to_pylist() for name in self._schema.names]
        roots = {root: Path(os.fsdecode(root)) for root in set(columns[0])}
        read_records: dict[Path, Record] = {}
        for root, below, *rest in zip(*columns, strict=True):
            path = join_path(root, below)
            read_records[path] = self._record(roots[root], path, *rest)
        return read_records


def join_path(root: bytes, below: bytes) -> Path:
    return Path(os.fsdecode(os.path.join(root, below)))


def _below(path: bytes, root: bytes) -> bytes:
    """Path relative to root. Raises ValueError when it is not below it."""
    prefix = root.rstrip(_SEPARATOR) + _SEPARATOR
    if not path.startswith(prefix):
        raise ValueError(f"{os.fsdecode(path)!r} is not below {os.fsdecode(root)!r}")
    return path[len(prefix) :]


def _is_below(path: bytes, root: bytes) -> bool:
    """Whether path is root or below it."""
    return path == root or path.startswith(root.rstrip(_SEPARATOR) + _SEPARATOR)


def _make_paths_condition(paths: Iterable[Path], roots: Sequence[bytes]) -> str:
    """SQL condition for the rows of absolute paths under any of the roots; "" when none can be there."""
    encoded = [os.fsencode(path) for path in paths]
    conditions = []
    for root in roots:
        inside = [_below(path, root) for path in encoded if path != root and _is_below(path, root)]
        if inside:
            values = ",".join(quote_bytes(path) for path in inside)
            conditions.append(f"(root = {quote_bytes(root)} AND path IN ({values}))")
    return " OR ".join(conditions)
