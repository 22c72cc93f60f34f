"""Retrieve by ITC, rerank by ITM: text -> photos, photo -> texts, photo -> photos.

The order after reranking is `itm_logit + itc_cosine`, as the published numbers were made with (LAVIS' evaluation;
the paper, section 4.4, says only that the best k = 128 are reranked by ITM); a checkpoint may weigh the logit
(`Blip2Config.match_weight`, 1 in BLIP-2). What ITM has not read, for it is
beyond k or its file cannot be read, stays behind in ITC's order, with the score `itc - BEHIND`: scores fall with
the rank, always. Where the index keeps captions, the k / 4 photos whose captions are nearest to the text are
candidates beside the k nearest photos, and all get the same score.

Shapes: N photos, Q queries, E embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.blip2.qformer import PhotoKeys
from engine.errors import IndexStateError, QueryError
from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.models.retrieval_model import BEHIND, RetrievalModel, match_probability
from engine.search.key_cache import KeyCache
from engine.search.reranking import Reranking, best_first
from engine.search.retrieval import Candidates, Retrieval, sorted_by_itc
from engine.search.search_notes import (
    not_ready_notes,
    other_photo_notes,
    size_notes,
    text_cut_notes,
    texts_cut_notes,
)
from engine.types import RERANKED, Failure, Hit, Photo, Results, TextHit, TextResults

HOLD_BYTES = 2**30
"""Of keys and values: some 14,000 of mini's photos, 220 of ViT-g's in bfloat16."""


class PhaseTimer:
    """Add up the seconds of each phase of a question."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time that the block takes to a phase."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Searcher:
    """Answers questions to one index with one model.

    store: None for a searcher that knows no photos and can still rerank and match what it is given. hold_bytes:
    memory for what matching computed of photos, for the next question; 0 for a single question. tell: called with
    a line about what takes long. Raises IndexStateError when another model made the index.
    """

    def __init__(
        self, store: Store | None, model: RetrievalModel, *, hold_bytes: int = HOLD_BYTES,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        if store is not None:
            store.manifest.check_same(Manifest.for_model(model, store.manifest.features))
        self.store, self.model, self.tell = store, model, tell
        self.retrieval = None if store is None else Retrieval(store)
        # `tell` may be set later, so it is looked up when there is something to tell
        self.reranking = Reranking(store, model, KeyCache(hold_bytes), lambda line: self.tell(line))

    def close(self) -> None:
        """End the threads that search; a question that comes after that starts them again."""
        if self.retrieval is not None:
            self.retrieval.close()

    def search(
        self, text: str, *, top: int = 20, rerank: int = RERANKED, caption_weight: float = 0.0
    ) -> Results:
        """The photos that fit a text. top: how many, >= 1. rerank: how many candidates ITM reads, 0 = none, those that
        come by their captions beside them. caption_weight: what the cosine of text and caption counts in the score.

        A candidate whose file cannot be read any more is named in `failures` and comes behind the others.
        Raises QueryError for an empty text.
        """
        timer, retrieval = PhaseTimer(), self._refreshed()
        text = _checked(text)
        rerank, notes = self._ready(rerank)
        with timer.phase("encode"):
            vectors, num_cut = self.model.encode_texts([text])
        with timer.phase("retrieve"):
            live = retrieval.store.list_live_ids()
            candidates = retrieval.candidates(vectors[0], top, rerank, caption_weight, live)
            bonus = retrieval.caption_bonus(vectors[0], candidates.photo_ids, caption_weight)
        photos = retrieval.store.read_photos(candidates.photo_ids)
        notes += text_cut_notes(num_cut[0], self._max_tokens) + size_notes(len(live), top)
        hits, failures = self._ranked(text, photos, candidates, bonus, top, timer)
        return Results(hits, tuple(notes), tuple(failures), timer.seconds)

    def similar(self, path: Path, *, top: int = 20) -> Results:
        """The photos that look like one, itself left out: by the mean over the slots of the cosine.

        A photo of the index is found by its stored vectors, another is read now. Raises QueryError when it
        cannot be read.
        """
        timer, retrieval = PhaseTimer(), self._refreshed()
        store = retrieval.store
        photo = store.find_photo(path)
        with timer.phase("encode"):
            if photo is not None:
                photo_QE = store.read_vectors([photo.id])[0].astype(np.float32)
            else:
                photo_QE = self._encode_file(path)[0]
        with timer.phase("retrieve"):
            live = store.list_live_ids()
            ids, cosines = retrieval.similar(photo_QE, top + 1, live)
            is_other = np.ones(len(ids), bool) if photo is None else ids != photo.id
            ids, cosines = ids[is_other][:top], cosines[is_other][:top]
        hits = tuple(
            Hit(rank, hit_photo, float(cosine), float(cosine))
            for rank, (hit_photo, cosine) in enumerate(zip(store.read_photos(ids), cosines, strict=True), 1)
        )
        notes = size_notes(len(live), top) if photo is None else other_photo_notes(len(live) - 1, top)
        return Results(self._captioned(hits), tuple(notes), (), timer.seconds)

    def match(
        self, path: Path, texts: Sequence[str] | None, *, top: int = 20, rerank: int = RERANKED
    ) -> TextResults:
        """The texts that fit a photo. texts: what to choose from; None: the indexed texts.

        A photo of the index whose patches are kept is not read. Raises QueryError: the photo cannot be read, a
        text is empty, or there are no texts.
        """
        timer = PhaseTimer()
        rerank, notes = self._ready(rerank)
        with timer.phase("encode"):
            photo_QE, keys = self._encode_file(path)
        with timer.phase("retrieve"):
            if texts is None:
                chosen, itc = self._refreshed().texts(photo_QE, max(top, rerank))
            else:
                chosen, itc, cut_notes = self._given_texts(photo_QE, [_checked(text) for text in texts])
                notes += cut_notes
        scores = itc.astype(np.float64)
        itm: list[float | None] = [None] * len(chosen)
        if rerank:
            with timer.phase("rerank"):
                logits = self.model.match(keys, chosen[:rerank])
            scores -= BEHIND
            scores[:rerank] = self.reranking.score(logits, itc[:rerank])
            itm[:rerank] = match_probability(logits).tolist()
        hits = [
            TextHit(rank, chosen[row], float(scores[row]), float(itc[row]), itm[row])
            for rank, row in enumerate(best_first(scores)[:top], 1)
        ]
        return TextResults(tuple(hits), tuple(notes), timer.seconds)

    def rerank(self, text: str, paths: Sequence[Path], *, top: int | None = None) -> Results:
        """Put any photos in order by how well they fit a text, indexed or not; the unreadable are in `failures`.

        top: how many to return, None = all. Raises QueryError for an empty text or no path.
        """
        timer = PhaseTimer()
        text = _checked(text)
        unique = list(dict.fromkeys(paths))
        if not unique:
            raise QueryError("There is no photo to rerank: give paths, one a line.")
        with timer.phase("encode"):
            vectors, num_cut = self.model.encode_texts([text])
        with timer.phase("rerank"):
            if self.store is not None:
                self.store.refresh()
            photos = known_photos(self.store, unique)
            matches = self.reranking.match(text, photos, vectors[0])
        num_ready, notes = self._ready(len(matches.rows))
        scores = self.reranking.score(matches.logits, matches.itc) if num_ready else matches.itc
        itm = match_probability(matches.logits)
        hits = tuple(
            Hit(
                rank, photos[matches.rows[row]], float(scores[row]), float(matches.itc[row]),
                float(itm[row]) if num_ready else None,
            )
            for rank, row in enumerate(best_first(scores)[:top], 1)
        )  # fmt: skip
        notes += text_cut_notes(num_cut[0], self._max_tokens)
        return Results(self._captioned(hits), tuple(notes), tuple(matches.failures), timer.seconds)

    @property
    def _max_tokens(self) -> int:
        """How many tokens of a text the model reads, without the two that stand around it."""
        return self.model.tokenizer.max_tokens - 2

    def _ready(self, rerank: int) -> tuple[int, list[str]]:
        """How many candidates ITM may put in order, and what to say when the checkpoint's ITM head may not."""
        if rerank == 0 or self.model.config.match_ready:
            return rerank, []
        return 0, not_ready_notes(self.model.name)

    def _ranked(
        self, text: str, photos: list[Photo], candidates: Candidates, bonus: np.ndarray, top: int,
        timer: PhaseTimer,
    ) -> tuple[tuple[Hit, ...], list[Failure]]:  # fmt: skip
        """Put candidates in order, those to rerank by ITM. bonus: added to each one's score."""
        failures: list[Failure] = []
        itc, rows = candidates.itc, candidates.to_rerank
        scores = itc + bonus
        itm: list[float | None] = [None] * len(photos)
        if len(rows):
            with timer.phase("rerank"):
                matches = self.reranking.match(text, [photos[row] for row in rows])
            failures = matches.failures
            rows_read = rows[matches.rows].tolist()
            scores -= BEHIND
            scores[rows_read] = self.reranking.score(matches.logits, itc[rows_read]) + bonus[rows_read]
            for row, probability in zip(rows_read, match_probability(matches.logits).tolist(), strict=True):
                itm[row] = probability
        hits = tuple(
            Hit(rank, photos[row], float(scores[row]), float(itc[row]), itm[row])
            for rank, row in enumerate(best_first(scores)[:top], 1)
        )
        return self._captioned(hits), failures

    def _captioned(self, hits: Sequence[Hit]) -> tuple[Hit, ...]:
        return tuple(hits) if self.retrieval is None else self.retrieval.captions.put_on(hits)

    def _encode_file(self, path: Path) -> tuple[np.ndarray, PhotoKeys]:
        """A photo, indexed or not -> unit vectors (Q, E) float32, and its keys and values."""
        (photo,) = known_photos(self.store, [path])
        keys = self.reranking.compute_photo_keys(photo)
        return self.model.compute_photo_vectors(keys)[0], keys

    def _given_texts(self, photo_QE: np.ndarray, texts: list[str]) -> tuple[list[str], np.ndarray, list[str]]:
        """Return given texts, each once, and their ITC with a photo, best first; and notes."""
        if not texts:
            raise QueryError("There are no texts to choose from.")
        texts = list(dict.fromkeys(texts))
        vectors, num_cut = self.model.encode_texts(texts)
        notes = texts_cut_notes(sum(count > 0 for count in num_cut), self._max_tokens)
        return *sorted_by_itc(texts, vectors, photo_QE), notes

    def _refreshed(self) -> Retrieval:
        """Return what finds candidates in the index as it is now. Raises IndexStateError when there is no index."""
        if self.retrieval is None:
            raise IndexStateError("There is no index: make one with `qseek index FOLDER`.")
        self.retrieval.store.refresh()
        return self.retrieval


def known_photos(store: Store | None, paths: Sequence[Path]) -> list[Photo]:
    """Return the photos of an index at these paths, that path first; one that is not indexed has the id -1."""
    photos = [None] * len(paths) if store is None else store.find_photos(paths)
    return [
        Photo(-1, "", 0, 0, (path,))
        if photo is None
        else replace(photo, paths=(path, *(other for other in photo.paths if other != path)))
        for path, photo in zip(paths, photos, strict=True)
    ]


def _checked(text: str) -> str:
    if not text.strip():
        raise QueryError("The text is empty. Write what the photo shows.")
    return text.strip()
