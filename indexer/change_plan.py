"""Compare the files on disk with those in the index, and plan which to read and which are gone or back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import QueryError
from engine.index.path_table import FailureRecord, FileRecord
from engine.index.store import Store
from engine.pictures.opening import is_curable_reason
from engine.types import Failure
from indexer.scan import ScannedFile, scan


@dataclass(slots=True)
class ChangePlan:
    """The changes that a run makes to an index.

    known, failures: all files of the index, and all that could not be read. to_read: new and changed files, each with
    its root. back: files that were marked as missing and are there again, unchanged. gone: files that are no longer
    there. gone_failures: files that could not be read and are no longer there. failed: folders that cannot be read, and
    files that failed before and have not changed. notes: sentences for the person. num_unchanged: number of files that
    are as they were.
    """

    known: dict[Path, FileRecord]
    failures: dict[Path, FailureRecord]
    to_read: list[tuple[Path, ScannedFile]] = field(default_factory=list)
    back: list[FileRecord] = field(default_factory=list)
    gone: dict[Path, FileRecord] = field(default_factory=dict)
    gone_failures: list[Path] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_unchanged: int = 0


def make_plan(roots: Sequence[Path], store: Store, *, retry_failed: bool) -> ChangePlan:
    """Scan the roots and return the plan.

    retry_failed: whether files that failed before are read again. Raises QueryError for a root that cannot be read,
    unless the index knows files below it and the root is not there now.
    """
    plan = ChangePlan(store.read_files(), store.read_failures())
    for root in _list_distinct_roots(roots):
        unreadable: list[Failure] = []
        try:
            files = scan(root, on_unreadable=unreadable.append)
        except QueryError:
            num_known = sum(_is_beneath(path, root) for path in plan.known)
            if num_known == 0 or root.exists():
                raise
            plan.notes.append(f"{_quote(root)} is not there. {_stay_known(num_known)}")
            continue
        seen_paths = set()
        for file in files:
            seen_paths.add(file.path)
            _classify(plan, root, file, retry_failed)
        plan.failed += unreadable
        if seen_paths:
            unseen = [failure.path for failure in unreadable]
            plan.gone |= {path: plan.known[path] for path in _list_gone(plan.known, root, seen_paths, unseen)}
            plan.gone_failures += _list_gone(plan.failures, root, seen_paths, unseen)
        else:
            num_known = sum(_is_beneath(path, root) for path in plan.known)
            stays = f" {_stay_known(num_known)}" if num_known else ""
            plan.notes.append(f"There are no photos in {_quote(root)}.{stays}")
    plan.gone = {path: record for path, record in plan.gone.items() if not record.missing}
    return plan


def _stay_known(num_known: int) -> str:
    files = "file stays" if num_known == 1 else "files stay"
    return f"Its {num_known:,} {files} in the index; is its drive mounted?"


def _list_distinct_roots(roots: Sequence[Path]) -> list[Path]:
    """Return the roots as absolute paths in their order, without those that lie below another root."""
    absolute = list(dict.fromkeys(Path(os.path.abspath(root)) for root in roots))
    return [root for root in absolute if not any(other in root.parents for other in absolute)]


def _classify(plan: ChangePlan, root: Path, file: ScannedFile, retry_failed: bool) -> None:
    """Put a file that the scan found where it belongs in the plan."""
    size_and_time = (file.size, file.mtime_ns)
    record = plan.known.get(file.path)
    if record is not None and (record.size, record.mtime_ns) == size_and_time:
        if record.missing:
            plan.back.append(record)
        else:
            plan.num_unchanged += 1
        return
    failure = plan.failures.get(file.path)
    if (
        failure is None
        or (failure.size, failure.mtime_ns) != size_and_time
        or retry_failed
        or is_curable_reason(failure.reason)
    ):
        plan.to_read.append((root, file))
    else:
        plan.failed.append(Failure(file.path, failure.reason))


def _list_gone(known: Iterable[Path], root: Path, seen_paths: set[Path], unseen: list[Path]) -> list[Path]:
    """Return the known paths below the root that the scan did not see, except below folders that it could not read."""
    not_seen = [path for path in known if path not in seen_paths and _is_beneath(path, root)]
    return [path for path in not_seen if not any(_is_beneath(path, folder) for folder in unseen)]


def _is_beneath(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or below it. Path.is_relative_to is many times slower, and there are many
    paths.
    """
    inside, outside = os.fspath(path), os.fspath(folder)
    return inside == outside or inside.startswith(outside.rstrip(os.sep) + os.sep)


def _quote(path: Path) -> str:
    return repr(os.fspath(path))
