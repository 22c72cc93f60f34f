"""scan -> decode -> encode -> store: the one way by which photos get into an index.

A run reads only what changed, and commits after seconds of work: what a kill loses, the next run does.
B photos, Q queries, E embedding.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.errors import PhotoError
from engine.index.manifest import Manifest
from engine.index.path_table import FailureRecord, FileRecord
from engine.index.photo_table import NewPhoto
from engine.index.store import Store
from engine.progress import Pace, Progress
from engine.types import Failure
from indexer.change_plan import ChangePlan, make_plan
from indexer.decode import Decoded, DecodeJob, Outcome
from indexer.decode_pool import decode_all
from indexer.scan import ScannedFile

COMMIT_BYTES = 2**28  # of features: at 0.7 MB a photo, memory would fill before the seconds are over
MAX_CANDIDATES = 100  # digests sent along with a file; BMPs of one camera all have one size
ROW_BYTES = 300  # digest, sizes and path of a photo


class Encoder(Protocol):
    """What turns squashed pictures into what the store keeps."""

    @property
    def image_size(self) -> int: ...

    def encode(self, pixels_BHWC: np.ndarray, /) -> tuple[np.ndarray, list[bytes] | None]:
        """uint8 (B, H, W, 3) -> unit vectors (B, Q, E) float16, and each photo's features or None."""
        ...


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a run did. Each file that the scan found counts once:

    added: a new photo. copied: a new path of a photo that lies elsewhere too. moved: a new path of a photo
    whose old path is gone. restored: there again after it was missing. changed: other content at a known
    path. unchanged: as it was. failed: unreadable files, those known from earlier runs too, and unreadable
    folders. Beside them, removed: known paths that are gone, without the moved ones. num_photos: distinct
    photos that can be found now. notes: what the person should know besides.
    """

    added: int
    copied: int
    moved: int
    restored: int
    changed: int
    unchanged: int
    removed: int
    failed: tuple[Failure, ...]
    notes: tuple[str, ...]
    num_photos: int
    seconds: float
    disk_bytes: int

    @classmethod
    def from_tally(cls, tally: Counter[str], plan: ChangePlan, store: Store, seconds: float) -> BuildReport:
        """Return the report of a run. tally: how many files were added, copied and so on, by these names."""
        names = ("added", "copied", "moved", "restored", "changed", "unchanged")
        return cls(
            **{name: tally[name] for name in names},
            removed=len(plan.gone) - tally["moved"],
            failed=tuple(plan.failed),
            notes=tuple(plan.notes),
            num_photos=store.num_photos,
            seconds=seconds,
            disk_bytes=store.measure_disk_bytes(),
        )


def estimate(num_new: int, manifest: Manifest) -> int:
    """Bytes that so many new photos take: vectors, in the table and in the FAISS cache, and features."""
    vectors = manifest.num_queries * manifest.embed_dim * 2
    return num_new * (2 * vectors + manifest.patch_bytes_per_photo + ROW_BYTES)


def build_index(
    roots: Sequence[Path],
    store: Store,
    encoder: Encoder,
    *,
    workers: int | None = None,
    batch_size: int = 64,
    commit_seconds: float = 5.0,
    retry_failed: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Bring the index in line with what lies beneath the roots.

    workers: decoding processes, 0 for none, None for one a processor. batch_size: photos encoded at once.
    commit_seconds: work that a kill may lose. retry_failed: read photos again that failed before and have
    not changed since. Raises QueryError for a root that is not there and not known, IndexStateError when
    another process writes the index or the disk is full. Whatever is raised, KeyboardInterrupt too, what
    was encoded before is committed.
    """
    started = time.monotonic()
    with store.writing():
        plan = make_plan(roots, store, retry_failed=retry_failed)
        run = _Run(plan, store, encoder, Pace(len(plan.to_read), on_progress))
        run.take_back()
        if plan.to_read:
            run.read(workers, batch_size, commit_seconds)
        if plan.gone:
            store.mark_missing(plan.gone)
        if plan.gone_failures:
            store.remove_failures(plan.gone_failures)
        if plan.to_read or plan.back or plan.gone:
            store.optimize()
        return BuildReport.from_tally(run.tally, plan, store, time.monotonic() - started)


class _Run:
    """Takes the files one by one, encodes new photos in batches, and commits."""

    def __init__(self, plan: ChangePlan, store: Store, encoder: Encoder, pace: Pace):
        self.plan = plan
        self.store = store
        self.encoder = encoder
        self.pace = pace
        self.tally: Counter[str] = Counter(unchanged=plan.num_unchanged)
        self.stored = set(store.map_ids_by_digest()) if plan.to_read else set()  # digests with vectors
        self.waiting: dict[str, tuple[Decoded, list[FileRecord]]] = {}  # by digest, for the next batch
        self.photos: list[NewPhoto] = []  # these four for the next commit
        self.files: list[FileRecord] = []
        self.failures: list[FailureRecord] = []
        self.num_bytes = 0  # of their features
        self.last_commit = time.monotonic()

        self.known_digests = {record.digest for record in plan.known.values()}
        self.num_paths: Counter[str] = Counter()  # by digest: paths that are there
        self.num_gone: Counter[str] = Counter()  # by digest: gone paths that no new path stands for yet
        for path, record in plan.known.items():
            if path in plan.gone:
                self.num_gone[record.digest] += 1
            elif not record.missing:
                self.num_paths[record.digest] += 1

    def take_back(self) -> None:
        """Files that were missing: their photos can be found again, nothing is read."""
        for record in self.plan.back:
            self._count_new_path(record.digest)
            self.files.append(
                FileRecord(record.root, record.path, record.size, record.mtime_ns, record.digest)
            )
        self._commit(self.store.add_while_writing)

    def read(self, workers: int | None, batch_size: int, commit_seconds: float) -> None:
        """Decode, encode and commit all that is to be read."""
        outcomes = decode_all(self._jobs(), self.encoder.image_size, workers)
        with closing(outcomes), _CommitThread(self.store) as writer:
            try:
                for (root, file), outcome in zip(self.plan.to_read, outcomes, strict=True):
                    self._take(root, file, outcome)
                    is_due = time.monotonic() - self.last_commit > commit_seconds
                    if len(self.waiting) >= batch_size or is_due:
                        self._encode()
                    if is_due or self.num_bytes > COMMIT_BYTES:
                        self._commit(writer.add)
                self._encode()
            finally:
                self._commit(writer.add)

    def _jobs(self) -> list[DecodeJob]:
        """A file of the same size as a stored photo may be that photo; then it is not decoded."""
        by_size: dict[int, set[str]] = defaultdict(set)
        for record in self.plan.known.values():
            if record.digest in self.stored:
                by_size[record.size].add(record.digest)
        known = {
            size: frozenset(digests) for size, digests in by_size.items() if len(digests) <= MAX_CANDIDATES
        }
        return [DecodeJob(file.path, known.get(file.size, frozenset())) for _, file in self.plan.to_read]

    def _take(self, root: Path, file: ScannedFile, outcome: Outcome) -> None:
        if isinstance(outcome, PhotoError):
            self.plan.failed.append(Failure(file.path, str(outcome)))
            self.failures.append(FailureRecord(root, file.path, file.size, file.mtime_ns, str(outcome)))
            self.pace.step(num_failed=1)
            return
        record = FileRecord(root, file.path, file.size, file.mtime_ns, outcome.digest)
        self._count(record)
        if outcome.digest in self.waiting:
            self.waiting[outcome.digest][1].append(record)
        elif isinstance(outcome, Decoded) and outcome.digest not in self.stored:
            self.waiting[outcome.digest] = (outcome, [record])
        else:
            self.files.append(record)
            self.pace.step()

    def _count(self, file: FileRecord) -> None:
        old = self.plan.known.get(file.path)
        if old is None or old.missing:
            self._count_new_path(file.digest)
        elif old.digest == file.digest:
            self.tally["unchanged"] += 1
        else:
            self.tally["changed"] += 1
            self.num_paths[old.digest] -= 1
            self.num_paths[file.digest] += 1

    def _count_new_path(self, digest: str) -> None:
        if self.num_gone[digest]:
            self.num_gone[digest] -= 1
            self.tally["moved"] += 1
        elif self.num_paths[digest]:
            self.tally["copied"] += 1
        else:
            self.tally["restored" if digest in self.known_digests else "added"] += 1
        self.num_paths[digest] += 1

    def _encode(self) -> None:
        if not self.waiting:
            return
        pixels_BHWC = np.stack([decoded.pixels for decoded, _ in self.waiting.values()])
        vectors_BQE, features = self.encoder.encode(pixels_BHWC)
        for number, (decoded, files) in enumerate(self.waiting.values()):
            kept = None if features is None else features[number]
            self.photos.append(
                NewPhoto(decoded.digest, decoded.width, decoded.height, vectors_BQE[number], kept)
            )
            self.files += files
            self.stored.add(decoded.digest)
            self.num_bytes += len(kept or b"")
        num_files = sum(len(files) for _, files in self.waiting.values())
        self.waiting.clear()
        self.pace.step(num_files)

    def _commit(self, add: Callable[[list[NewPhoto], list[FileRecord], list[FailureRecord]], object]) -> None:
        if self.photos or self.files or self.failures:
            add(self.photos, self.files, self.failures)
            self.photos, self.files, self.failures, self.num_bytes = [], [], [], 0
        self.last_commit = time.monotonic()


class _CommitThread:
    """Commits in a thread of its own, one batch at a time, while the next photos are encoded.

    Leaving it waits for the last batch. What a batch raises is raised by what follows it, and nothing is written
    after it: a later file may be a copy of a photo that was lost.
    """

    def __init__(self, store: Store):
        self.store = store
        self.pool = ThreadPoolExecutor(1)
        self.last: Future[object] | None = None

    def add(self, *batch: Any) -> None:
        self._wait()
        self.last = self.pool.submit(self.store.add_while_writing, *batch)

    def _wait(self) -> None:
        if self.last is not None:
            self.last.result()

    def __enter__(self) -> _CommitThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        self._wait()
