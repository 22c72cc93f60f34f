"""Put photos into an index: scan, decode, encode, store. There is no other way in.

A run reads only what has changed and commits every few seconds of work, so that a killed run loses seconds, which the
next run does again. Shapes: B photos, Q queries, E embedding.
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

# Patches of so many bytes are committed at once. At 0.7 MB a photo they would fill the memory before the seconds are
# over.
COMMIT_BYTES = 2**28
# So many digests at most are sent along with a file: all BMPs of one camera have the same size.
MAX_CANDIDATES = 100
ROW_BYTES = 300  # A photo's digest, sizes and path take about so many bytes.


class Encoder(Protocol):
    """The interface of an encoder of photos, such as PhotoEncoder."""

    @property
    def image_size(self) -> int:
        """Return the side of the square that it encodes, in pixels."""
        ...

    def encode(self, pixels_BHWC: np.ndarray, /) -> tuple[np.ndarray, list[bytes] | None]:
        """Encode uint8 pictures (B, H, W, 3) as unit vectors (B, Q, E) float16, and each photo's patches or None."""
        ...


@dataclass(frozen=True, slots=True)
class BuildReport:
    """The report of a run over photos. Each file that the scan saw counts once:

    added: it holds a new photo. copied: it is a new path of a photo that lies elsewhere, too. moved: it is a new path
    of a photo whose old path is gone. restored: it is there again after it was missing. changed: it has other content
    than before. unchanged: it is as it was. failed: files that cannot be read, also those known from earlier runs, and
    folders that cannot be read. Beside these, removed: number of known paths that are gone, without the moved ones.
    num_photos: number of photos that a search can find now. notes: sentences for the person. seconds: duration of the
    run. disk_bytes: size of the index.
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
        """Make the report of a run. tally: the number of files that were added, copied and so on, by these names."""
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


def estimate_bytes(num_new: int, manifest: Manifest) -> int:
    """Return about how many bytes new photos take: their vectors, in the table and in the FAISS files, and patches."""
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
    """Bring an index in line with the photos below the roots.

    workers: number of processes that decode, 0 for none, None for one on each processor. batch_size: number of photos
    that are encoded at once. commit_seconds: seconds of work that a kill may lose. retry_failed: whether photos are
    read again that failed before and have not changed since. on_progress: called a few times a second. Raises
    QueryError for a root that is not there and that the index does not know, IndexStateError when another process
    writes the index and when the disk is full. Photos that are encoded before an exception, also before
    KeyboardInterrupt, are committed.
    """
    started = time.monotonic()
    with store.writing():
        plan = make_plan(roots, store, retry_failed=retry_failed)
        run = _Run(plan, store, encoder, Pace(len(plan.to_read), on_progress))
        run.restore_files()
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
    """A run that takes decoded files one by one, encodes new photos in batches, and commits."""

    def __init__(self, plan: ChangePlan, store: Store, encoder: Encoder, pace: Pace):
        self.plan = plan
        self.store = store
        self.encoder = encoder
        self.pace = pace
        self.tally: Counter[str] = Counter(unchanged=plan.num_unchanged)
        # The digests of photos whose vectors are stored.
        self.stored = set(store.map_ids_by_digest()) if plan.to_read else set()
        # The photos of the next batch to encode, by digest.
        self.waiting: dict[str, tuple[Decoded, list[FileRecord]]] = {}
        # The records of the next commit, and the number of bytes of their patches.
        self.photos: list[NewPhoto] = []
        self.files: list[FileRecord] = []
        self.failures: list[FailureRecord] = []
        self.num_bytes = 0
        self.last_commit = time.monotonic()

        self.known_digests = {record.digest for record in plan.known.values()}
        # By digest: the number of paths that are there, and of gone paths for which no new path has come yet.
        self.num_paths: Counter[str] = Counter()
        self.num_gone: Counter[str] = Counter()
        for path, record in plan.known.items():
            if path in plan.gone:
                self.num_gone[record.digest] += 1
            elif not record.missing:
                self.num_paths[record.digest] += 1

    def restore_files(self) -> None:
        """Restore the files that were missing and are back; their photos can be found again, and nothing is read."""
        for record in self.plan.back:
            self._count_new_path(record.digest)
            self.files.append(
                FileRecord(record.root, record.path, record.size, record.mtime_ns, record.digest)
            )
        self._commit(self.store.add_while_writing)

    def read(self, workers: int | None, batch_size: int, commit_seconds: float) -> None:
        """Decode, encode and commit all files that the plan says to read."""
        outcomes = decode_all(self._list_jobs(), self.encoder.image_size, workers)
        with closing(outcomes), _CommitThread(self.store) as writer:
            try:
                for (root, file), outcome in zip(self.plan.to_read, outcomes, strict=True):
                    self._take_outcome(root, file, outcome)
                    is_due = time.monotonic() - self.last_commit > commit_seconds
                    if len(self.waiting) >= batch_size or is_due:
                        self._encode()
                    if is_due or self.num_bytes > COMMIT_BYTES:
                        self._commit(writer.add)
                self._encode()
            finally:
                self._commit(writer.add)

    def _list_jobs(self) -> list[DecodeJob]:
        """Return a job for each file to read, with the digests of stored photos of its size, which it may hold."""
        by_size: dict[int, set[str]] = defaultdict(set)
        for record in self.plan.known.values():
            if record.digest in self.stored:
                by_size[record.size].add(record.digest)
        known = {
            size: frozenset(digests) for size, digests in by_size.items() if len(digests) <= MAX_CANDIDATES
        }
        return [DecodeJob(file.path, known.get(file.size, frozenset())) for _, file in self.plan.to_read]

    def _take_outcome(self, root: Path, file: ScannedFile, outcome: Outcome) -> None:
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
            patches = None if features is None else features[number]
            self.photos.append(
                NewPhoto(decoded.digest, decoded.width, decoded.height, vectors_BQE[number], patches)
            )
            self.files += files
            self.stored.add(decoded.digest)
            self.num_bytes += len(patches or b"")
        num_files = sum(len(files) for _, files in self.waiting.values())
        self.waiting.clear()
        self.pace.step(num_files)

    def _commit(self, add: Callable[[list[NewPhoto], list[FileRecord], list[FailureRecord]], object]) -> None:
        if self.photos or self.files or self.failures:
            add(self.photos, self.files, self.failures)
            self.photos, self.files, self.failures, self.num_bytes = [], [], [], 0
        self.last_commit = time.monotonic()


class _CommitThread:
    """A thread that commits one batch at a time while the next photos are encoded.

    Leaving the context waits for the last batch. An exception of a batch is raised by the next call, and nothing is
    written after it, because a later file may be a copy of a photo that was lost.
    """

    def __init__(self, store: Store):
        self.store = store
        self.pool = ThreadPoolExecutor(1)
        self.last: Future[object] | None = None

    def add(self, *batch: Any) -> None:
        """Wait for the last batch, then commit this one in the thread."""
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
