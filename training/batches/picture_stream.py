"""Read the batches of a run from a mixture of training sets, picture by picture, in threads and ahead of time.

A batch is a function of (seed, step), so that a stopped run goes on with exactly the same bits. Threads read, decode,
crop and mirror the pictures (Pillow decodes without the interpreter's lock).
Shapes: B pairs of this process, N pairs of all processes, H W pixels.
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

MAX_REPLACEMENTS = 100
"""Number of unreadable samples in a row after which a set is given up."""
MAX_NAMED_FAILURES = 20
"""Number of failures that a stream remembers in words; older ones are only counted."""
NO_CAPTION = "it has no caption"
TOO_LONG = "it is too long"
UNREADABLE = "it cannot be read"
SET_NUMBER_SHIFT = 40
"""A picture id is the number of the set, shifted to the left by this many bits, plus the picture's number in the
set.
"""

Opener = Callable[[Any, Path, int], TrainingSet]
"""A function that opens a set: (config, folder of the data, number of threads) -> the opened set."""
CheckCaption = Callable[[str, str], None]
"""A function that raises DataError for a question and a caption that cannot be learned."""
_Row = tuple[np.ndarray, str, int, str]
"""Pixels, caption, picture id and question of a pair."""


class PictureStream:
    """Batches of a mixture of sets by step, whose pictures are read, cropped and mirrored when a step needs them.

    A sample that cannot be used is replaced by the next usable one of its set.
    sets: the opened sets. failures: number of samples that were replaced, by reason. failure_texts: the last of them in
    words.
    """

    def __init__(
        self,
        set_configs: Sequence[SetConfig],
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
        """Open the sets. Raise DataError when there is none, or when one holds nothing.

        data: folder of the sets. batch: N. augment: cuts a crop from a picture. world: this process among all.
        workers: number of threads. ahead: number of batches that are read before they are asked for.
        check_caption: refuses questions and captions that cannot be learned.
        """
        if not set_configs:
            raise DataError("There is no set to train on; give at least one.")
        self.sets = [opener(config, data, workers) for config in set_configs]
        self.check_caption = check_caption
        self.mixture = Mixture([config.weight for config in set_configs], seed)
        self.orders = [
            SampleOrder(training_set, (seed, number)) for number, training_set in enumerate(self.sets)
        ]
        self.batch_size, self.seed, self.augment, self.world = batch, seed, augment, world
        self.failures: Counter[str] = Counter()
        self.failure_texts: deque[str] = deque(maxlen=MAX_NAMED_FAILURES)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._ahead = ahead
        self._pending: dict[int, list[Future[_Row]]] = {}
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Return the number of samples of all sets."""
        return sum(training_set.count for training_set in self.sets)

    def settings(self) -> dict[str, str]:
        """Return a digest of each set's samples, which must be unchanged when a stopped run goes on."""
        return {f"source {training_set.config.path}": training_set.digest() for training_set in self.sets}

    def report(self) -> list[str]:
        """Return lines that count and name what was left out or replaced."""
        lines = []
        for training_set in self.sets:
            path = training_set.config.path
            lines += [
                f"{path}: {count} left out, {reason}" for reason, count in training_set.left_out.items()
            ]
            lines += [f"shard skipped: {broken.reason}" for broken in training_set.broken]
        lines += [f"{count} samples replaced: {reason}" for reason, count in self.failures.most_common()]
        return lines + [f"  {text}" for text in self.failure_texts]

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step, and begin to read the batches after it.

        Raise DataError when too many samples in a row of a set cannot be used.
        """
        wanted_steps = range(step, step + self._ahead + 1)
        for number in [number for number in self._pending if number not in wanted_steps]:
            for future in self._pending.pop(number):
                future.cancel()
        for number in wanted_steps:
            if number not in self._pending:
                self._pending[number] = self._begin_batch(number)
        rows = [future.result() for future in self._pending.pop(step)]
        pictures, captions, ids, questions = zip(*rows, strict=True)
        draws = shared_draws(self.seed, step)
        return Batch(
            np.stack(pictures), list(captions), np.array(ids, dtype=np.int64), list(questions), draws
        )

    def close(self) -> None:
        """Stop reading ahead and end the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _begin_batch(self, step: int) -> list[Future[_Row]]:
        """Submit the samples of a step that belong to this process to the threads."""
        count = self.batch_size // self.world.size
        first = step * self.batch_size + self.world.rank * count
        return [self._pool.submit(self._load_sample, number) for number in range(first, first + count)]

    def _load_sample(self, number: int) -> _Row:
        """Read sample `number` of the run, or the next usable one of its set; the data alone decides which."""
        with self._lock:
            set_number, position = self.mixture(number)
        for num_replaced in range(MAX_REPLACEMENTS):
            with self._lock:
                read_sample = self.orders[set_number](position + num_replaced)
            draws = np.random.default_rng([self.seed, 1, number])
            sample = None
            try:
                sample = read_sample()
                if not sample.pair.captions:
                    raise DataError(NO_CAPTION)
                picture = self.augment(open_picture(sample.pair.picture), draws)
                caption = sample.pair.captions[int(draws.integers(len(sample.pair.captions)))]
                if self.check_caption is not None:
                    self.check_caption(sample.question, caption)
            except (DataError, PhotoError) as error:
                self._note_failure(str(error) if sample is None else f"{sample.pair.key}: {error}")
                continue
            return picture, caption, (set_number << SET_NUMBER_SHIFT) + sample.picture_id, sample.question
        raise DataError(
            f"{MAX_REPLACEMENTS} samples in a row of {self.sets[set_number].config.path} could not be read, the last: "
            f"{self.failure_texts[-1]}"
        )

    def _note_failure(self, text: str) -> None:
        """Count a sample that was replaced by the reason with which the text ends, and remember the text."""
        reason = next((reason for reason in (NO_CAPTION, TOO_LONG) if text.endswith(reason)), UNREADABLE)
        with self._lock:
            self.failures[reason] += 1
            self.failure_texts.append(text)
