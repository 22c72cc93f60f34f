"""Batches of a mixture of sources, each a function of (seed, step): a resumed run reads on bit-exactly.

Pictures are read, decoded, cropped and flipped in threads (Pillow decodes without the interpreter's lock), the next
batches ahead of time. Shapes: B pairs of this process, N of all, H W pixels.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from engine.datasets.captioned_sets import SetConfig, TrainingSet, open_training_set
from engine.errors import DataError, PhotoError
from engine.pictures.opening import open_picture
from training.batches.batch_source import Batch
from training.batches.crops import Augment
from training.batches.mixture import Mixture
from training.batches.sample_order import SampleOrder
from training.distributed.world import World
from training.loop.random_draws import shared_draws

MOST_REPLACED = 100
"""Samples in a row that may be unreadable before the source is given up."""
MOST_NAMED = 20
NO_CAPTION = "it has no caption"
TOO_LONG = "it is too long"
UNREADABLE = "it cannot be read"
SHIFT = 40
"""Picture ids: the number of the source, shifted by so many bits, and the picture's number in it."""


Opener = Callable[[Any, Path, int], TrainingSet]
CheckCaption = Callable[[str, str], None]
"""Question, caption: raises DataError for those that cannot be learned."""
_Row = tuple[np.ndarray, str, int, str]


class PictureStream:
    """Opened sources, as batches by step. `failures` counts by reason what the next good sample stood in for.

    `failed` names the last of those."""

    def __init__(
        self,
        sources: Sequence[SetConfig],
        data: Path,
        *,
        batch: int,
        seed: int,
        augment: Augment,
        world: World,
        workers: int = 8,
        ahead: int = 3,
        opener: Opener = open_training_set,
        check_caption: CheckCaption | None = None,
    ):
        """batch: N. augment: picture, draws -> uint8 (H, W, 3). opener: config, data, threads -> opened. usable: what
        is refused is replaced. Raises DataError when a source holds nothing."""
        if not sources:
            raise DataError("There is no source to train on; give at least one.")
        self.sets = [opener(config, data, workers) for config in sources]
        self.check_caption = check_caption
        self.mixture = Mixture([config.weight for config in sources], seed)
        self.orders = [SampleOrder(source, (seed, number)) for number, source in enumerate(self.sets)]
        self.batch_size, self.seed, self.augment, self.world = batch, seed, augment, world
        self.failures: Counter[str] = Counter()
        self.failed: deque[str] = deque(maxlen=MOST_NAMED)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._ahead = ahead
        self._coming: dict[int, list[Future[_Row]]] = {}
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return sum(source.count for source in self.sets)

    def settings(self) -> dict[str, str]:
        """What a resumed run must find again: which samples lie where."""
        return {f"source {source.config.path}": source.digest() for source in self.sets}

    def report(self) -> list[str]:
        """What was left out, counted and named, a line each."""
        lines = []
        for source in self.sets:
            lines += [
                f"{source.config.path}: {count} left out, {why}" for why, count in source.left_out.items()
            ]
            lines += [f"shard skipped: {broken.reason}" for broken in source.broken]
        lines += [f"{count} samples replaced: {reason}" for reason, count in self.failures.most_common()]
        return lines + [f"  {reason}" for reason in self.failed]

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step; those after it are begun. Raises DataError when a source has become unreadable."""
        for number in [n for n in self._coming if not step <= n <= step + self._ahead]:
            for future in self._coming.pop(number):
                future.cancel()
        for number in range(step, step + self._ahead + 1):
            if number not in self._coming:
                self._coming[number] = self._begin(number)
        rows = [future.result() for future in self._coming.pop(step)]
        pictures, captions, ids, questions = zip(*rows, strict=True)
        draws = shared_draws(self.seed, step)
        return Batch(
            np.stack(pictures), list(captions), np.array(ids, dtype=np.int64), list(questions), draws
        )

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, step: int) -> list[Future[_Row]]:
        count = self.batch_size // self.world.size
        first = step * self.batch_size + self.world.rank * count
        return [self._pool.submit(self._load, number) for number in range(first, first + count)]

    def _load(self, number: int) -> _Row:
        """The n-th sample of the run, or the next good one of its source: data alone decides which."""
        with self._lock:
            source, position = self.mixture(number)
        for later in range(MOST_REPLACED):
            with self._lock:
                read = self.orders[source](position + later)
            draws = np.random.default_rng([self.seed, 1, number])
            sample = None
            try:
                sample = read()
                if not sample.pair.captions:
                    raise DataError(NO_CAPTION)
                picture = self.augment(open_picture(sample.pair.picture), draws)
                caption = sample.pair.captions[int(draws.integers(len(sample.pair.captions)))]
                if self.check_caption is not None:
                    self.check_caption(sample.question, caption)
            except (DataError, PhotoError) as error:
                self._note(str(error) if sample is None else f"{sample.pair.key}: {error}")
                continue
            return picture, caption, (source << SHIFT) + sample.picture_id, sample.question
        raise DataError(
            f"{MOST_REPLACED} samples in a row of {self.sets[source].config.path} could not be read, the last: "
            f"{self.failed[-1]}"
        )

    def _note(self, reason: str) -> None:
        with self._lock:
            self.failures[
                next((end for end in (NO_CAPTION, TOO_LONG) if reason.endswith(end)), UNREADABLE)
            ] += 1
            self.failed.append(reason)
