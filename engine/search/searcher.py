"""Answer questions: find photos by a text, texts by a photo, and photos by a photo, by ITC and then by ITM.

After reranking, photos are ordered by `match_weight * itm_logit + itc_cosine`. The published numbers were made so
with a weight of 1 (LAVIS' evaluation); the paper, section 4.4, says only that the best k = 128 are reranked by ITM. A
photo that ITM has not read, because it is beyond k or its file cannot be read, stays behind in the order of ITC with
the score `itc - BEHIND`, so that scores always fall with the rank. Where the index keeps captions, the k / 4 photos
whose captions are nearest to the text are candidates beside the k nearest photos; their score is made in the same
way.

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
from engine.models.retrieval_model import BEHIND, RetrievalModel
from engine.search.key_cache import KeyCache
from engine.search.reranking import Reranking, sort_best_first
from engine.search.retrieval import Candidates, Retrieval, sort_by_itc
from engine.search.search_notes import (
    not_ready_notes,
    other_photo_notes,
    size_notes,
    text_cut_notes,
    texts_cut_notes,
)
from engine.types import RERANKED, Failure, Hit, Photo, Results, TextHit, TextResults

HOLD_BYTES = 2**30
"""Bytes of keys and values that are held: those of some 14,000 photos of mini, or 220 of ViT-g in bfloat16."""


class PhaseTimer:
    """A timer that adds up the seconds of each phase of a question."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a phase."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Searcher:
    """A searcher that answers questions about one index with one model.

    It must not be used by several threads at once. store: None for a searcher without an index, which can still rerank
    given photos and match given texts. hold_bytes: memory for keys of photos that the next question may need, 0 for a
    single question. tell: called with a line about work that takes long. Raises IndexStateError when another model made
    the index.
    """

    def __init__(
        self, store: Store | None, model: RetrievalModel, *, hold_bytes: int = HOLD_BYTES,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        if store is not None:
            store.manifest.check_same(Manifest.for_model(model, store.manifest.features))
        self.store, self.model, self.tell = store, model, tell
        self.retrieval = None if store is None else Retrieval(store)
        # `tell` may be set later, so it is looked up when there is something to tell.
        self.reranking = Reranking(store, model, KeyCache(hold_bytes), lambda line: self.tell(line))

    def close(self) -> None:
        """End the threads that search. A later question starts them again."""
        if self.retrieval is not None:
            self.retrieval.close()

    def search(
        self, text: str, *, top: int = 20, rerank: int = RERANKED, caption_weight: float = 0.0
    ) -> Results:
        """Find the photos that fit a text.

        top: the number of hits, at least 1. rerank: the number of nearest photos that ITM reads, 0 for none; candidates
        by their captions are read beside them. caption_weight: the factor of the cosine of text and caption in the
        score. A candidate whose file can no longer be read is named in `failures` and comes behind the others. Raises
        QueryError for an empty text.
        """
        timer, retrieval = PhaseTimer(), self._refresh()
        text = _strip_text(text)
        rerank, notes = self._limit_reranked(rerank)
        with timer.phase("encode"):
            vectors, num_cut = self.model.encode_texts([text])
        with timer.phase("retrieve"):
            live = retrieval.store.list_live_ids()
            candidates = retrieval.find_candidates(vectors[0], top, rerank, caption_weight, live)
            bonus = retrieval.compute_caption_bonus(vectors[0], candidates.photo_ids, caption_weight)
        photos = retrieval.store.read_photos(candidates.photo_ids)
        notes += text_cut_notes(num_cut[0], self._max_tokens) + size_notes(len(live), top)
        hits, failures = self._rank(text, photos, candidates, bonus, top, timer)
        return Results(hits, tuple(notes), tuple(failures), timer.seconds)

    def similar(self, path: Path, *, top: int = 20) -> Results:
        """Find the photos that look like a photo, by the mean of the cosines of their slots; the photo is left out.

        A photo of the index is looked up by its stored vectors, another one is read now. Raises QueryError when it
        cannot be read.
        """
        timer, retrieval = PhaseTimer(), self._refresh()
        store = retrieval.store
        photo = store.find_photo(path)
        with timer.phase("encode"):
            if photo is not None:
                photo_QE = store.read_vectors([photo.id])[0].astype(np.float32)
            else:
                photo_QE = self._encode_file(path)[0]
        with timer.phase("retrieve"):
            live = store.list_live_ids()
            ids, cosines = retrieval.find_similar(photo_QE, top + 1, live)
            is_other = np.ones(len(ids), bool) if photo is None else ids != photo.id
            ids, cosines = ids[is_other][:top], cosines[is_other][:top]
        hits = tuple(
            Hit(rank, hit_photo, float(cosine), float(cosine))
            for rank, (hit_photo, cosine) in enumerate(zip(store.read_photos(ids), cosines, strict=True), 1)
        )
        notes = size_notes(len(live), top) if photo is None else other_photo_notes(len(live) - 1, top)
        return Results(self._add_captions(hits), tuple(notes), (), timer.seconds)

    def match(
        self, path: Path, texts: Sequence[str] | None, *, top: int = 20, rerank: int = RERANKED
    ) -> TextResults:
        """Find the texts that fit a photo. texts: the texts to choose from, None for the indexed texts.

        The file of a photo whose patches are in the index is not read. Raises QueryError when the photo cannot be read,
        when a text is empty, and when there are no texts.
        """
        timer = PhaseTimer()
        rerank, notes = self._limit_reranked(rerank)
        with timer.phase("encode"):
            photo_QE, keys = self._encode_file(path)
        with timer.phase("retrieve"):
            if texts is None:
                chosen, itc = self._refresh().find_texts(photo_QE, max(top, rerank))
            else:
                chosen, itc, cut_notes = self._rank_given_texts(
                    photo_QE, [_strip_text(text) for text in texts]
                )
                notes += cut_notes
        scores = itc.astype(np.float64)
        itm: list[float | None] = [None] * len(chosen)
        if rerank:
            with timer.phase("rerank"):
                logits = self.model.match(keys, chosen[:rerank])
            scores -= BEHIND
            scores[:rerank] = self.reranking.score(logits, itc[:rerank])
            itm[:rerank] = self.reranking.compute_probabilities(logits, itc[:rerank]).tolist()
        hits = [
            TextHit(rank, chosen[row], float(scores[row]), float(itc[row]), itm[row])
            for rank, row in enumerate(sort_best_first(scores)[:top], 1)
        ]
        return TextResults(tuple(hits), tuple(notes), timer.seconds)

    def rerank(self, text: str, paths: Sequence[Path], *, top: int | None = None) -> Results:
        """Put photos in order by how well they fit a text, whether they are indexed or not.

        top: the number of hits, None for all. Photos that cannot be read are in `failures`. Raises QueryError for an
        empty text, and when there is no path.
        """
        timer = PhaseTimer()
        text = _strip_text(text)
        unique = list(dict.fromkeys(paths))
        if not unique:
            raise QueryError("There is no photo to rerank. Give paths, one a line.")
        with timer.phase("encode"):
            vectors, num_cut = self.model.encode_texts([text])
        with timer.phase("rerank"):
            if self.store is not None:
                self.store.refresh()
            photos = find_known_photos(self.store, unique)
            matches = self.reranking.match(text, photos, vectors[0])
        num_ready, notes = self._limit_reranked(len(matches.rows))
        scores = self.reranking.score(matches.logits, matches.itc) if num_ready else matches.itc
        itm = self.reranking.compute_probabilities(matches.logits, matches.itc)
        hits = tuple(
            Hit(
                rank,
                photos[matches.rows[row]],
                score=float(scores[row]),
                itc=float(matches.itc[row]),
                itm=float(itm[row]) if num_ready else None,
            )
            for rank, row in enumerate(sort_best_first(scores)[:top], 1)
        )
        notes += text_cut_notes(num_cut[0], self._max_tokens)
        return Results(self._add_captions(hits), tuple(notes), tuple(matches.failures), timer.seconds)

    @property
    def _max_tokens(self) -> int:
        """Return how many tokens of a text the model reads, without [CLS] and [SEP] around it."""
        return self.model.tokenizer.max_tokens - 2

    def _limit_reranked(self, rerank: int) -> tuple[int, list[str]]:
        """Return how many candidates ITM may put in order, and a note when the model's ITM head is not ready to."""
        if rerank == 0 or self.model.config.match_ready:
            return rerank, []
        return 0, not_ready_notes(self.model.name)

    def _rank(
        self, text: str, photos: list[Photo], candidates: Candidates, bonus: np.ndarray, top: int,
        timer: PhaseTimer,
    ) -> tuple[tuple[Hit, ...], list[Failure]]:  # fmt: skip
        """Return the best candidates as hits, those to rerank ordered by ITM, and the photos that could not be read.

        bonus: is added to the score of each candidate.
        """
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
            probabilities = self.reranking.compute_probabilities(matches.logits, itc[rows_read])
            for row, probability in zip(rows_read, probabilities.tolist(), strict=True):
                itm[row] = probability
        hits = tuple(
            Hit(rank, photos[row], float(scores[row]), float(itc[row]), itm[row])
            for rank, row in enumerate(sort_best_first(scores)[:top], 1)
        )
        return self._add_captions(hits), failures

    def _add_captions(self, hits: Sequence[Hit]) -> tuple[Hit, ...]:
        return tuple(hits) if self.retrieval is None else self.retrieval.captions.add_captions(hits)

    def _encode_file(self, path: Path) -> tuple[np.ndarray, PhotoKeys]:
        """Return the unit vectors (Q, E) float32 of a photo, indexed or not, and its keys and values."""
        (photo,) = find_known_photos(self.store, [path])
        keys = self.reranking.compute_photo_keys(photo)
        return self.model.compute_photo_vectors(keys)[0], keys

    def _rank_given_texts(
        self, photo_QE: np.ndarray, texts: list[str]
    ) -> tuple[list[str], np.ndarray, list[str]]:
        """Return the given texts, each once, and their ITC with a photo, the best first; and notes."""
        if not texts:
            raise QueryError("There are no texts to choose from.")
        texts = list(dict.fromkeys(texts))
        vectors, num_cut = self.model.encode_texts(texts)
        notes = texts_cut_notes(sum(count > 0 for count in num_cut), self._max_tokens)
        return *sort_by_itc(texts, vectors, photo_QE), notes

    def _refresh(self) -> Retrieval:
        """Return the retrieval after moving on to the newest state of the index.

        Raises IndexStateError when there is no index.
        """
        if self.retrieval is None:
            raise IndexStateError("There is no index. Make one with `qseek index FOLDER`.")
        self.retrieval.store.refresh()
        return self.retrieval


def find_known_photos(store: Store | None, paths: Sequence[Path]) -> list[Photo]:
    """Return the photo at each path, with this path first among its paths; a photo that is not indexed has the id
    -1.
    """
    photos = [None] * len(paths) if store is None else store.find_photos(paths)
    return [
        Photo(-1, "", 0, 0, (path,))
        if photo is None
        else replace(photo, paths=(path, *(other for other in photo.paths if other != path)))
        for path, photo in zip(paths, photos, strict=True)
    ]


def _strip_text(text: str) -> str:
    if not text.strip():
        raise QueryError("The text is empty. Write what the photo shows.")
    return text.strip()
