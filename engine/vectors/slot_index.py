"""Find the exact nearest photos with FAISS, with one index for each slot, on the CPU or on a GPU.

The score of photo i and text t is max_s <z_is, t>. A photo among the best k by this maximum is among the best k of the
slot where it has its maximum, so that k hits from each slot, merged by maximum, hold the exact top k (ARCHITECTURE,
decision 2). Ties at the edge and kinds that round are settled by a bound: a photo that no list has shown scores at most
the last score of a list, and more hits are fetched until the k-th hit is above this bound.

Shapes: S slots, E embedding, N rows, M texts, K hits, F hits that are fetched from one list.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from engine.processors import count_processors
from engine.vectors.gpu_slots import DeviceCopy, DeviceView
from engine.vectors.segments import KINDS, Segment, bitmap_selector
from engine.vectors.slot_bounds import (
    NOISE,
    Lists,
    SlotView,
    last_scores,
    mean_bound_of_unseen,
    mean_bounds_of_shown,
    merge_maximum,
)

_log = logging.getLogger(__name__)

_SPARE = 16  # Hits that are fetched beyond k, so that a tie at the edge rarely costs a second search.
_ROUNDED_FACTOR = 4  # Hits that are fetched for each one that is asked for, where the index rounds.
# Hits that are fetched for each photo where slots are averaged: the lists of the slots agree less.
_MEAN_FACTOR = 32
_TEXT_BATCH = 256
_RESCORED_BATCH = 2048  # Photos; they take 64 MB at 32 x 256 as float32.
ReadVectors = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _SegmentView:
    """The rows of a segment that may be found; see `SlotView`."""

    segment: Segment
    selector: Any
    count: int

    @property
    def rounding(self) -> float:
        return self.segment.rounding

    def search(self, slot: int, queries_ME: np.ndarray, fetch: int) -> tuple[np.ndarray, np.ndarray]:
        return self.segment.search(slot, queries_ME, min(fetch, self.count), self.selector)


class SlotIndex:
    """An index of rows of S unit vectors each, which is searched exactly.

    kind: "flat" (float32), "fp16" (exact for vectors that are float16) or "int8" (a quarter of the memory of "flat";
    hits are scored again). read_vectors: returns the vectors (N, S, E) of ids (N,); "int8" needs it, because its own
    vectors are rounded. device: "auto", "cpu" or "gpu". Raises ValueError for an unknown kind or device.
    """

    def __init__(
        self,
        num_slots: int,
        width: int,
        kind: str = "fp16",
        device: str = "auto",
        *,
        read_vectors: ReadVectors | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}.")
        if device not in ("auto", "cpu", "gpu"):
            raise ValueError(f"device is {device!r}; it must be auto, cpu or gpu.")
        if kind == "int8" and read_vectors is None:
            raise ValueError("read_vectors is missing; an int8 index needs it to score its hits again.")
        self.num_slots = num_slots
        self.width = width
        self.kind = kind
        self.segments: list[Segment] = []
        on_gpu = device == "gpu" or (device == "auto" and faiss.get_num_gpus() > 0)
        self._device = DeviceCopy(num_slots, width, kind) if on_gpu else None
        self._vectors_of = read_vectors or self.reconstruct
        # FAISS uses one thread for one vector on a flat index, so the slots are searched in parallel.
        self._pool = ThreadPoolExecutor(count_processors(), "faiss", lambda: faiss.omp_set_num_threads(1))

    def close(self) -> None:
        """End the threads that search. The index cannot be searched after that; closing it again does nothing."""
        self._pool.shutdown()

    def __len__(self) -> int:
        return sum(len(segment) for segment in self.segments)

    def __repr__(self) -> str:
        return f"SlotIndex({self.num_slots} slots, width {self.width}, {self.kind}, {len(self)} rows)"

    @property
    def ids(self) -> np.ndarray:
        """Return the int64 ids in the order in which they were added."""
        return np.concatenate([np.zeros(0, np.int64), *(segment.ids for segment in self.segments)])

    def add(self, ids_N: np.ndarray, vectors_NSE: np.ndarray) -> None:
        """Append rows of float16 or float32 vectors. The ids must be new. Raises ValueError for another shape."""
        vectors = np.asarray(vectors_NSE)
        if vectors.shape != (len(ids_N), self.num_slots, self.width):
            raise ValueError(f"The vectors are {vectors.shape} for {len(ids_N)} ids in {self!r}.")
        if len(ids_N) == 0:
            return
        if not self.segments or self.segments[-1].frozen:
            self.segments.append(Segment.empty(self.num_slots, self.width, self.kind))
        self.segments[-1].add(np.asarray(ids_N, dtype=np.int64), vectors)

    def search(
        self, queries_ME: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the exact top k by the maximum over the slots for each of M unit vectors.

        allowed: the ids that may be found, None for all. Returns ids (M, K) int64 and scores (M, K) float32, which are
        cosines in [-1, 1], the best first, ties by the lower id, padded with -1 and -inf where there are fewer than k.
        """
        queries = np.ascontiguousarray(queries_ME, dtype=np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for start in range(0, len(queries), _TEXT_BATCH):
            pending = np.arange(start, min(start + _TEXT_BATCH, len(queries)))
            fetch = self._first_fetch(k)
            while k and len(pending):
                settled = np.ones(len(pending), bool)
                hits = self._hits(queries[pending], k, fetch, allowed)
                for place, (best_ids, best_scores, is_exact) in enumerate(hits):
                    ids[pending[place], : len(best_ids)] = best_ids
                    scores[pending[place], : len(best_ids)] = best_scores
                    settled[place] = is_exact
                pending, fetch = pending[~settled], 2 * fetch
        return ids, scores

    def _hits(
        self, queries_ME: np.ndarray, k: int, fetch: int, allowed: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
        """Yield for each text the top k of lists of `fetch` hits, and whether no other photo can be among them."""
        views = self._views(allowed, fetch)
        lists = self._lists(views, [queries_ME] * self.num_slots, fetch)
        total = sum(view.count for view in views)
        all_seen = all(view.count <= fetch for view in views)
        rounding = max((view.rounding for view in views), default=0.0)
        last = [view_last.max(axis=0) for view_last in last_scores(views, lists, fetch)]
        for row, query in enumerate(queries_ME):
            ids = [part[row] for view in lists for part, _ in view]
            scores = [part[row] for view in lists for _, part in view]
            if rounding:
                best_ids, best_scores = merge_maximum(ids, scores, total if all_seen else fetch)
                bound = best_scores[-1] + rounding + NOISE if len(best_scores) else 0.0
                best_ids, best_scores = self._rescored(best_ids, best_scores + rounding + NOISE, query, k)
            else:
                best_ids, best_scores = merge_maximum(ids, scores, k)
                bound = max((view_last[row] for view_last in last), default=0.0)
            done = all_seen or (len(best_ids) == k and bool(best_scores[-1] > bound))
            yield best_ids, best_scores, done

    def search_slots(
        self, vectors_SE: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the exact top k photos for a photo, by the mean over the slots of the cosine with the same slot.

        This is Fagin's threshold algorithm. A photo that no list has shown scores at most the mean of the lists' last
        scores. A photo that some lists have shown scores at most the mean in which the last score of a list stands for
        each score that is not known. Only photos that can still be among the best are scored in full. Returns ids (K,)
        and scores (K,) as `search` does.
        """
        queries = np.ascontiguousarray(vectors_SE, dtype=np.float32)
        scored, means = np.zeros(0, np.int64), np.zeros(0, np.float32)
        fetch, done = _MEAN_FACTOR * k + _SPARE, k == 0
        while not done:
            views = self._views(allowed, fetch)
            lists = self._lists(views, [query[None] for query in queries], fetch)
            last = [part[:, 0] for part in last_scores(views, lists, fetch)]
            unseen = max(
                (mean_bound_of_unseen(view, part) for view, part in zip(views, last, strict=True)),
                default=-np.inf,
            )
            shown, upper = mean_bounds_of_shown(views, lists, last)
            new = ~np.isin(shown, scored)
            shown, upper = shown[new], upper[new]
            promising = np.arange(len(shown)) < 2 * k
            for part in (promising, ~promising):
                kth = np.sort(means)[-k] if len(means) >= k else -np.inf
                done = kth > unseen or all(view.count <= fetch for view in views)
                if part is promising or done:
                    ids = shown[part & (upper >= kth)]
                    scored = np.concatenate([scored, ids])
                    means = np.concatenate([means, self._cosines(ids, queries).mean(axis=1)])
            fetch *= 2
        best = np.lexsort((scored, -means))[:k]
        ids, scores = np.full(k, -1, np.int64), np.full(k, -np.inf, np.float32)
        ids[: len(best)], scores[: len(best)] = scored[best], means[best]
        return ids, scores

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        """Return the vectors (N, S, E) float32 of ids as the index holds them. All ids must be in the index."""
        all_ids = self.ids
        order = np.argsort(all_ids, kind="stable")
        rows = order[np.searchsorted(all_ids, ids, sorter=order)]
        vectors = np.empty((len(ids), self.num_slots, self.width), np.float32)
        start = 0
        for segment in self.segments:
            inside = (rows >= start) & (rows < start + len(segment))
            if inside.any():
                vectors[inside] = segment.reconstruct(rows[inside] - start)
            start += len(segment)
        return vectors

    def _first_fetch(self, k: int) -> int:
        rounds = self.kind == "int8" or self._device is not None
        return (_ROUNDED_FACTOR * k if rounds else k) + _SPARE

    def _views(self, allowed: np.ndarray | None, fetch: int) -> Sequence[SlotView]:
        """Return what is searched: the copy on the GPU where it can give so many hits, else the segments."""
        masks = [None if allowed is None else np.isin(segment.ids, allowed) for segment in self.segments]
        if self._device is not None:
            try:
                view = self._device.view(self.segments, masks, fetch)
            except RuntimeError as error:  # Another program may have taken the memory of the GPU.
                _log.warning("FAISS cannot use the GPU and searches on the CPU: %s", error)
                self._device = view = None
            if view is not None:
                return [view] if view.count else []
        views = []
        for segment, mask in zip(self.segments, masks, strict=True):
            count = len(segment) if mask is None else int(mask.sum())
            selector = None if mask is None or count == len(segment) else bitmap_selector(mask)
            views.append(_SegmentView(segment, selector, count))
        return [view for view in views if view.count]

    def _lists(self, views: Sequence[SlotView], queries_SME: Sequence[np.ndarray], fetch: int) -> Lists:
        """Search every view and slot; return the lists of hits."""
        if views and isinstance(views[0], DeviceView):  # The resources of a GPU serve one search at a time.
            return [
                [view.search(slot, queries_SME[slot], fetch) for slot in range(self.num_slots)]
                for view in views
            ]
        tasks = [(view, slot) for view in views for slot in range(self.num_slots)]
        lists = list(self._pool.map(lambda task: task[0].search(task[1], queries_SME[task[1]], fetch), tasks))
        return [lists[start : start + self.num_slots] for start in range(0, len(lists), self.num_slots)]

    def _rescored(
        self, ids: np.ndarray, upper: np.ndarray, query_E: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the exact top k of ids whose scores are at most `upper`, which is sorted with the largest first."""
        scores = self._cosines(ids[:k], query_E[None]).max(axis=1)
        possible = ids[k:][upper[k:] >= scores.min(initial=np.inf)]
        ids = np.concatenate([ids[:k], possible])
        scores = np.concatenate([scores, self._cosines(possible, query_E[None]).max(axis=1)])
        best = np.lexsort((ids, -scores))[:k]
        return ids[best], scores[best]

    def _cosines(self, ids: np.ndarray, queries_SE: np.ndarray) -> np.ndarray:
        """Return the cosines (N, S) of photos' vectors with one vector for each slot, or with one for all slots."""
        cosines = np.empty((len(ids), self.num_slots), np.float32)
        for start in range(0, len(ids), _RESCORED_BATCH):
            part = ids[start : start + _RESCORED_BATCH]
            vectors = self._vectors_of(part).astype(np.float32, copy=False)
            cosines[start : start + len(part)] = (vectors * queries_SE).sum(axis=2)
        return cosines
