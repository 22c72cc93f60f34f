"""The second half of the retrieval protocol: ITM reads pairs of a photo and a caption, and keeps what it says of each.

Captions are begun (see `QFormer.start_texts`) in blocks of like length, so that their first layer is computed once. A
photo's keys and values are computed once a block and read by all its captions there. Logits are kept in a file as they
come (`EvaluationCache.logits`), so that a run that was stopped goes on.
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
    """Computes what ITM adds to the score of each pair; several threads, each with a model, may share the photos.

    numbers: the number in the set of each photo, by which the cache knows its patches. captions: M texts. pairs: as
    photo * M + caption, ascending; photo is a row of `numbers`. captions_at_once: how many are begun together.
    logits: float32, one for each pair, NaN until it is read. num_kept: how many of them an earlier run left.
    """

    def __init__(
        self, model: RetrievalModel, numbers: Sequence[int], captions: Sequence[str], pairs: np.ndarray,
        cache: EvaluationCache, captions_at_once: int, on_progress: Callable[[Progress], None] | None = None,
    ):  # fmt: skip
        self.numbers, self.captions, self.cache = numbers, captions, cache
        self.captions_at_once = captions_at_once
        self.logits = cache.open_logits(pairs)
        self.num_kept = int((~np.isnan(self.logits)).sum())
        self._caption_of_pair = pairs % len(captions)
        self._first_pair = np.searchsorted(pairs // len(captions), np.arange(len(numbers) + 1))
        self._by_length = model.tokenizer(captions)[1].sum(dim=1).argsort(stable=True).numpy()
        self._place = np.empty(len(captions), np.int64)  # of each caption among those by length
        self._place[self._by_length] = np.arange(len(captions))
        self._lock = threading.Lock()
        self._pace = Pace(len(pairs) - self.num_kept, on_progress)
        self._synced = time.monotonic()

    def match_photos(self, model: RetrievalModel, rows: Sequence[int]) -> None:
        """Fill in the logits of all pairs of these photos that no run has read yet."""
        for first in range(0, len(self.captions), self.captions_at_once):
            block = self._by_length[first : first + self.captions_at_once]
            begun: TextStart | None = None
            for row in rows:
                pairs, places = self._missing_pairs(row, first, len(block))
                if not len(pairs):
                    continue
                if begun is None:
                    begun = model.start_texts([self.captions[number] for number in block])
                self._match(model, row, pairs, begun[torch.from_numpy(places).to(model.device)])

    def _missing_pairs(self, row: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a photo's pairs that are not read yet, whose captions are among the `count` from `first` on by length,
        shortest first: their numbers among all pairs, and the places of their captions in that block."""
        start, stop = self._first_pair[row], self._first_pair[row + 1]
        places = self._place[self._caption_of_pair[start:stop]] - first
        missing = np.flatnonzero((places >= 0) & (places < count) & np.isnan(self.logits[start:stop]))
        missing = missing[np.argsort(places[missing], kind="stable")]
        return start + missing, places[missing]

    def _match(self, model: RetrievalModel, row: int, pairs: np.ndarray, begun: TextStart) -> None:
        keys = model.compute_photo_keys(self.cache.read_patches(self.numbers[row]).to(model.device))
        logits = model.config.match_weight * model.match(keys, begun)[:, 1]
        with self._lock:
            self.logits[pairs] = logits
            self._pace.step(len(pairs))
            if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
                self.sync()

    def sync(self) -> None:
        """Wait until the logits that are there are on the disk."""
        self.logits.flush()
        self._synced = time.monotonic()
