"""What has to be read, what is gone and what is back: a scan beside what the store knows."""

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
    """known: every file of the store. to_read: new and changed files, each with its root. back: marked as
    missing, and there again unchanged. gone: no longer there. gone_failures: likewise, of the unreadable.
    failed: unreadable folders, and files that failed before and have not changed."""

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
    """Scan the roots. Raises QueryError for a root that cannot be read, unless it is known and away."""
    plan = ChangePlan(store.read_files(), store.read_failures())
    for root in _distinct(roots):
        unreadable: list[Failure] = []
        try:
            files = scan(root, on_unreadable=unreadable.append)
        except QueryError:
            num_known = sum(_is_beneath(path, root) for path in plan.known)
            if num_known == 0 or root.exists():
                raise
            plan.notes.append(f"{_shown(root)} is not there: its {num_known:,} files stay known{_MOUNTED}")
            continue
        found = set()
        for file in files:
            found.add(file.path)
            _classify(plan, root, file, retry_failed)
        plan.failed += unreadable
        if found:
            unseen = [failure.path for failure in unreadable]
            plan.gone |= {path: plan.known[path] for path in _lost(plan.known, root, found, unseen)}
            plan.gone_failures += _lost(plan.failures, root, found, unseen)
        else:
            num_known = sum(_is_beneath(path, root) for path in plan.known)
            stays = f": its {num_known:,} files stay known{_MOUNTED}" if num_known else ""
            plan.notes.append(f"there are no photos in {_shown(root)}{stays}")
    plan.gone = {path: record for path, record in plan.gone.items() if not record.missing}
    return plan


_MOUNTED = " (is its drive mounted?)"


def _distinct(roots: Sequence[Path]) -> list[Path]:
    """Absolute, in the order given, without those that lie beneath another one."""
    absolute = list(dict.fromkeys(Path(os.path.abspath(root)) for root in roots))
    return [root for root in absolute if not any(other in root.parents for other in absolute)]


def _classify(plan: ChangePlan, root: Path, file: ScannedFile, retry_failed: bool) -> None:
    seen = (file.size, file.mtime_ns)
    record = plan.known.get(file.path)
    if record is not None and (record.size, record.mtime_ns) == seen:
        if record.missing:
            plan.back.append(record)
        else:
            plan.num_unchanged += 1
        return
    failure = plan.failures.get(file.path)
    if (
        failure is None
        or (failure.size, failure.mtime_ns) != seen
        or retry_failed
        or is_curable_reason(failure.reason)
    ):
        plan.to_read.append((root, file))
    else:
        plan.failed.append(Failure(file.path, failure.reason))


def _lost(known: Iterable[Path], root: Path, found: set[Path], unseen: list[Path]) -> list[Path]:
    """Known paths beneath the root that the scan did not find, save where it could not look."""
    lost = [path for path in known if path not in found and _is_beneath(path, root)]
    return [path for path in lost if not any(_is_beneath(path, folder) for folder in unseen)]


def _is_beneath(path: Path, folder: Path) -> bool:
    """The folder itself or anything in it; Path.is_relative_to is many times slower, and there are many."""
    inside, outside = os.fspath(path), os.fspath(folder)
    return inside == outside or inside.startswith(outside.rstrip(os.sep) + os.sep)


def _shown(path: Path) -> str:
    return repr(os.fspath(path))
