"""Score pairs of a photo and a caption by ITM, the second half of the retrieval protocol, and store the logits.

Captions are started (see `QFormer.start_texts`) in blocks of similar length, so that their first layer is computed
once. The keys and values of a photo are computed once for each block and read by all of its captions there. Logits are
written to a file as they are computed (`EvaluationCache.open_logits`), so that a run that was stopped goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from engine.blip2.qformer import TextStart
from engine.evaluation.retrieval_cache import SECONDS_BETWEEN_SYNCS, EvaluationCache
from engine.models.retrieval_model import RetrievalModel
from engine.progress import Pace, Progress


class PairMatcher:
    """Computes the score that ITM adds to that of ITC for each pair.

    Several threads, each with a model of its own, may share the photos.

    logits: float32, one for each pair, NaN until it is computed.
    num_kept: the number of logits that an earlier run has computed.
    """

    def __init__(
        self,
        model: RetrievalModel,
        numbers: Sequence[int],
        captions: Sequence[str],
        pairs: np.ndarray,
        cache: EvaluationCache,
        captions_at_once: int,
        on_progress: Callable[[Progress], None] | None = None,
    ):
        """Open the logits of the pairs and sort the captions by length.

        numbers: for each photo its number in the set, under which the cache stores its patches.
        captions: M texts.
        pairs: photo * M + caption of each pair, ascending, where photo is a row of `numbers`.
        captions_at_once: the number of captions that are started together.
        """
        self.numbers, self.captions, self.cache = numbers, captions, cache
        self.captions_at_once = captions_at_once
        self.logits = cache.open_logits(pairs)
        self.num_kept = int((~np.isnan(self.logits)).sum())
        self._caption_of_pair = pairs % len(captions)
        self._first_pair = np.searchsorted(pairs // len(captions), np.arange(len(numbers) + 1))
        self._by_length = model.tokenizer(captions)[1].sum(dim=1).argsort(stable=True).numpy()
        self._length_order = np.empty(len(captions), np.int64)  # the position of each caption in _by_length
        self._length_order[self._by_length] = np.arange(len(captions))
        self._lock = threading.Lock()
        self._pace = Pace(len(pairs) - self.num_kept, on_progress)
        self._synced = time.monotonic()

    def match_photos(self, model: RetrievalModel, rows: Sequence[int]) -> None:
        """Compute the missing logits of all pairs of some photos; rows: the photos, as rows of `numbers`."""
        for first in range(0, len(self.captions), self.captions_at_once):
            block = self._by_length[first : first + self.captions_at_once]
            started: TextStart | None = None
            for row in rows:
                pairs, block_positions = self._find_missing_pairs(row, first, len(block))
                if not len(pairs):
                    continue
                if started is None:
                    started = model.start_texts([self.captions[number] for number in block])
                self._match(model, row, pairs, started[torch.from_numpy(block_positions).to(model.device)])

    def _find_missing_pairs(self, row: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of a photo that have no logit yet and whose captions are in a block, shortest first.

        The block holds the `count` captions from `first` on in the order of length. The result is the numbers of the
        pairs among all pairs, and the positions of their captions in the block.
        """
        start, stop = self._first_pair[row], self._first_pair[row + 1]
        positions = self._length_order[self._caption_of_pair[start:stop]] - first
        missing = np.flatnonzero((positions >= 0) & (positions < count) & np.isnan(self.logits[start:stop]))
        missing = missing[np.argsort(positions[missing], kind="stable")]
        return start + missing, positions[missing]

    def _match(self, model: RetrievalModel, row: int, pairs: np.ndarray, started: TextStart) -> None:
        keys = model.compute_photo_keys(self.cache.read_patches(self.numbers[row]).to(model.device))
        logits = model.config.match_weight * model.match(keys, started)[:, 1]
        with self._lock:
            self.logits[pairs] = logits
            self._pace.step(len(pairs))
            if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
                self.sync()

    def sync(self) -> None:
        """Wait until the logits that are computed so far are on the disk."""
        self.logits.flush()
        self._synced = time.monotonic()
