"""Retrieve by ITC, rerank by ITM: text -> photos, photo -> texts, photo -> photos.

The order after reranking is `itm_logit + itc_cosine`, as the published numbers were made with (LAVIS' evaluation;
the paper, section 4.4, says only that the best k = 128 are reranked by ITM); a checkpoint may weigh the logit
(`Blip2Config.match_weight`, 1 in BLIP-2). What ITM has not read, for it is
beyond k or its file cannot be read, stays behind in ITC's order, with the score `itc - BEHIND`: scores fall with
the rank, always. Where the index keeps captions, the k / 4 photos whose captions are nearest to the text are
candidates beside the k nearest photos, and all get the same score.

Shapes: N photos, M texts, P patches, V vision width, Q queries, E embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from engine.blip2.qformer import PhotoKeys
from engine.errors import IndexStateError, QueryError
from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.models.retrieval_model import BEHIND, PHOTOS_AT_ONCE, RetrievalModel, match_probability
from engine.pictures.opening import read_square
from engine.search.caption_search import CaptionSearch
from engine.search.key_cache import HeldKeys
from engine.search.reranking import SLOW_SECONDS, best_first, in_parts
from engine.search.retrieval import CAPTIONED_SHARE
from engine.search.search_notes import other_photo_notes, size_notes
from engine.types import Failure, Hit, Photo, Results, TextHit, TextResults
from engine.vectors.slot_bounds import merge_maximum
from engine.vectors.slot_index import SlotIndex
from engine.vectors.table_indexes import open_photo_index, open_text_index

RERANKED = 128
"""Candidates that ITM reads, k in BLIP-2, section 4.4."""
HOLD_BYTES = 2**30
"""Of keys and values: some 14,000 of mini's photos, 220 of ViT-g's in bfloat16."""


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
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
        self._held = HeldKeys(hold_bytes)
        self._photo_index: tuple[int, SlotIndex] | None = None
        self._text_index: tuple[int, SlotIndex] | None = None
        self._captions = None if store is None else CaptionSearch(store)

    def search(
        self, text: str, *, top: int = 20, rerank: int = RERANKED, caption_weight: float = 0.0
    ) -> Results:
        """The photos that fit a text. top: how many, >= 1. rerank: how many candidates ITM reads, 0 = none, those that
        come by their captions beside them. caption_weight: what the cosine of text and caption counts in the score.

        A candidate whose file cannot be read any more is named in `failures` and comes behind the others.
        Raises QueryError for an empty text.
        """
        clock, store = Clock(), self._store()
        text = _checked(text)
        rerank, notes = self._ready(rerank)
        with clock.phase("encode"):
            vectors, cut = self.model.encode_texts([text])
        with clock.phase("retrieve"):
            live = store.live_ids()
            ids, itc = self._photos().search(vectors, max(top, rerank), live)
            ids, itc = ids[0][ids[0] >= 0], itc[0][ids[0] >= 0]
            chosen = np.arange(len(ids)) < rerank
            if rerank or caption_weight:
                num_captions = (rerank or top) if caption_weight else -(-rerank // CAPTIONED_SHARE)
                ids, itc, chosen = self._beside(ids, itc, chosen, vectors[0], num_captions, live)
            bonus = np.zeros(len(ids))
            if caption_weight and self._captions is not None:
                bonus = caption_weight * self._captions.cosines(vectors[0], ids).astype(np.float64)
        notes += self._text_notes(cut[0]) + size_notes(len(live), top)
        rows = np.flatnonzero(chosen) if rerank else np.zeros(0, np.int64)
        hits, failures = self._ranked(text, store.photos(ids), itc, bonus, rows, top, clock)
        return Results(hits, tuple(notes), tuple(failures), clock.seconds)

    def similar(self, path: Path, *, top: int = 20) -> Results:
        """The photos that look like one, itself left out: by the mean over the slots of the cosine.

        A photo of the index is found by its stored vectors, another is read now. Raises QueryError when it
        cannot be read.
        """
        clock, store = Clock(), self._store()
        photo = store.photo_at(path)
        with clock.phase("encode"):
            if photo is not None:
                query_QE = store.vectors([photo.id])[0].astype(np.float32)
            else:
                query_QE = self._encode_file(path)[0]
        with clock.phase("retrieve"):
            live = store.live_ids()
            ids, itc = self._photos().search_slots(query_QE, top + 1, live)
            found = [
                (i, s) for i, s in zip(ids, itc, strict=True) if i >= 0 and (photo is None or i != photo.id)
            ]
            found = found[:top]
        photos = store.photos([i for i, _ in found])
        hits = tuple(
            Hit(rank, one, float(score), float(score))
            for rank, (one, (_, score)) in enumerate(zip(photos, found, strict=True), 1)
        )
        notes = size_notes(len(live), top) if photo is None else other_photo_notes(len(live) - 1, top)
        return Results(self._captioned(hits), tuple(notes), (), clock.seconds)

    def match(
        self, path: Path, texts: Sequence[str] | None, *, top: int = 20, rerank: int = RERANKED
    ) -> TextResults:
        """The texts that fit a photo. texts: what to choose from; None: the indexed texts.

        A photo of the index whose patches are kept is not read. Raises QueryError: the photo cannot be read, a
        text is empty, or there are no texts.
        """
        clock = Clock()
        rerank, notes = self._ready(rerank)
        with clock.phase("encode"):
            photo_QE, keys = self._encode_file(path)
        with clock.phase("retrieve"):
            if texts is None:
                chosen, itc, more = self._indexed_texts(photo_QE, max(top, rerank))
            else:
                chosen, itc, more = self._given_texts(photo_QE, [_checked(text) for text in texts])
        scores = itc.astype(np.float64)
        itm: list[float | None] = [None] * len(chosen)
        if rerank:
            with clock.phase("rerank"):
                logits = self.model.match(keys, chosen[:rerank])
            scores -= BEHIND
            scores[:rerank] = self._scores(logits, itc[:rerank])
            itm[:rerank] = match_probability(logits).tolist()
        hits = [
            TextHit(rank, chosen[i], float(scores[i]), float(itc[i]), itm[i])
            for rank, i in enumerate(best_first(scores)[:top], 1)
        ]
        return TextResults(tuple(hits), (*notes, *more), clock.seconds)

    def rerank(self, text: str, paths: Sequence[Path], *, top: int | None = None) -> Results:
        """Put any photos in order by how well they fit a text, indexed or not; the unreadable are in `failures`.

        top: how many to return, None = all. Raises QueryError for an empty text or no path.
        """
        clock = Clock()
        text = _checked(text)
        unique = list(dict.fromkeys(paths))
        if not unique:
            raise QueryError("There is no photo to rerank: give paths, one a line.")
        with clock.phase("encode"):
            vectors, cut = self.model.encode_texts([text])
        with clock.phase("rerank"):
            if self.store is not None:
                self.store.refresh()
            known = self._known(unique)
            kept, itc, logits, failures = self._match(text, known, vectors[0])
        ready, notes = self._ready(len(kept))
        scores = self._scores(logits, itc) if ready else itc
        itm = match_probability(logits)
        hits = tuple(
            Hit(rank, known[kept[i]], float(scores[i]), float(itc[i]), float(itm[i]) if ready else None)
            for rank, i in enumerate(best_first(scores)[:top], 1)
        )
        notes += self._text_notes(cut[0])
        return Results(self._captioned(hits), tuple(notes), tuple(failures), clock.seconds)

    def _scores(self, logits_N2: np.ndarray, itc_N: np.ndarray) -> np.ndarray:
        return self.model.config.match_weight * logits_N2[:, 1] + itc_N

    def _ready(self, rerank: int) -> tuple[int, list[str]]:
        """How many candidates ITM may put in order, and what to say when the checkpoint's ITM head may not."""
        if rerank == 0 or self.model.config.match_ready:
            return rerank, []
        name = self.model.name
        return 0, [f"{name}'s matching head is not trained well enough to rerank: the order is the cosine's."]

    def add_texts(self, texts: Sequence[str]) -> int:
        """Index texts, so that `match` finds them; returns how many were new. Raises QueryError for an empty one."""
        store = self._store()
        before = store.texts.count()
        chosen = [_checked(text) for text in texts]
        store.texts.add(chosen, self.model.encode_texts(chosen)[0].astype(np.float16))
        return store.texts.count() - before

    def _beside(
        self,
        ids: np.ndarray,
        itc: np.ndarray,
        chosen: np.ndarray,
        text_E: np.ndarray,
        k: int,
        live: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Candidates, best ITC first, and those with the k nearest captions, `chosen` (to be reranked) as well."""
        assert self._captions is not None
        near = self._captions.nearest(text_E, k, live)
        more = np.setdiff1d(near, ids)
        cosines = (self._store().vectors(more).astype(np.float32) @ text_E).max(axis=1, initial=-1.0)
        order = np.argsort(-cosines, kind="stable")
        chosen = np.concatenate([chosen | np.isin(ids, near), np.ones(len(more), bool)])
        return np.concatenate([ids, more[order]]), np.concatenate([itc, cosines[order]]), chosen

    def _captioned(self, hits: Sequence[Hit]) -> tuple[Hit, ...]:
        return tuple(hits) if self._captions is None else self._captions.put_on(hits)

    def _ranked(
        self, text: str, photos: list[Photo], itc: np.ndarray, bonus: np.ndarray, rows: np.ndarray, top: int,
        clock: Clock,
    ) -> tuple[tuple[Hit, ...], list[Failure]]:  # fmt: skip
        """Candidates, best ITC first -> hits, those of `rows` reordered by ITM. bonus: added to each one's score."""
        failures: list[Failure] = []
        scores = itc + bonus
        itm: list[float | None] = [None] * len(photos)
        if len(rows):
            with clock.phase("rerank"):
                read, _, logits, failures = self._match(text, [photos[row] for row in rows])
            read = rows[read].tolist()
            scores -= BEHIND
            scores[read] = self._scores(logits, itc[read]) + bonus[read]
            for row, probability in zip(read, match_probability(logits).tolist(), strict=True):
                itm[row] = probability
        hits = tuple(
            Hit(rank, photos[i], float(scores[i]), float(itc[i]), itm[i])
            for rank, i in enumerate(best_first(scores)[:top], 1)
        )
        return self._captioned(hits), failures

    def _match(
        self, text: str, photos: Sequence[Photo], query_E: np.ndarray | None = None
    ) -> tuple[list[int], np.ndarray, np.ndarray, list[Failure]]:
        """-> the rows that could be read, their ITC (zeros without `query_E`), match logits (N, 2), failures."""
        kept: list[int] = []
        failures: list[Failure] = []
        itc, logits = [np.zeros(0, np.float32)], [np.zeros((0, 2), np.float32)]
        start = self.model.start_texts([text])
        fold = query_E is None and not self._held.max_bytes and self.model.folding_pays
        for rows, read in self._read(photos, failures, fold):
            kept += rows
            logits.append(self.model.match(read, start))
            if query_E is None or isinstance(read, torch.Tensor):
                itc.append(np.zeros(len(rows), np.float32))
            else:
                itc.append((self.model.photo_vectors(read) @ query_E).max(axis=1))
        order = np.argsort(kept, kind="stable")
        return sorted(kept), np.concatenate(itc)[order], np.concatenate(logits)[order], failures

    def _read(
        self, photos: Sequence[Photo], failures: list[Failure], fold: bool
    ) -> Iterator[tuple[list[int], PhotoKeys | torch.Tensor]]:
        """Rows and their keys, or patches to `fold`: those held, those whose patches are kept, those encoded now."""
        held = [row for row, photo in enumerate(photos) if photo.digest in self._held]
        for rows in in_parts(held, PHOTOS_AT_ONCE):
            yield rows, self._held.take([photos[row].digest for row in rows])
        others = sorted(set(range(len(photos))) - set(held))
        for rows, patches in self._patches(photos, others, failures):
            if fold:
                yield rows, patches
            else:
                keys = self.model.photo_keys(patches)
                self._held.put([photos[row].digest for row in rows], keys)
                yield rows, keys

    def _patches(
        self, photos: Sequence[Photo], rows: Sequence[int], failures: list[Failure]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Rows and their patches (B, P, V): those that are kept, then those of files read and encoded now.

        A photo that cannot be read is added to `failures`.
        """
        missing: list[int] = []
        for part in in_parts(rows, PHOTOS_AT_ONCE):
            stored = self._stored_patches([photos[row] for row in part])
            with_patches = [row for row, patches in zip(part, stored, strict=True) if patches is not None]
            missing += [row for row, patches in zip(part, stored, strict=True) if patches is None]
            if with_patches:
                found = [patches for patches in stored if patches is not None]
                yield with_patches, self.model.patches_from_bytes(found, self._features)
        started, num_done = time.monotonic(), 0
        with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter's lock
            for part in in_parts(missing, self.model.vision_at_once):
                pictures = dict(
                    zip(part, pool.map(self._picture, [photos[row] for row in part]), strict=True)
                )
                failures += [one for one in pictures.values() if isinstance(one, Failure)]
                decoded = {row: one for row, one in pictures.items() if not isinstance(one, Failure)}
                if decoded:
                    yield list(decoded), self.model.encode_patches(np.stack(list(decoded.values())))
                num_done += len(part)
                seconds = time.monotonic() - started
                if seconds > SLOW_SECONDS and num_done < len(missing):
                    left = seconds / num_done * (len(missing) - num_done)
                    self.tell(f"{num_done} of {len(missing)} candidates encoded, {left:.0f} s left.")

    @property
    def _features(self) -> str:
        """How the index keeps patches."""
        return "none" if self.store is None else self.store.manifest.features

    def _stored_patches(self, photos: Sequence[Photo]) -> list[bytes | None]:
        known = [photo.id for photo in photos if photo.id >= 0]
        if self.store is None or self._features == "none" or not known:
            return [None] * len(photos)
        found = dict(zip(known, self.store.features(known), strict=True))
        return [found.get(photo.id) for photo in photos]

    def _picture(self, photo: Photo) -> np.ndarray | Failure:
        """The first of its files that can be read -> uint8 (H, W, 3)."""
        return read_square(photo.paths, self.model.image_size)

    def _encode_file(self, path: Path) -> tuple[np.ndarray, PhotoKeys]:
        """A photo, indexed or not -> unit vectors (Q, E) float32, and its keys and values."""
        failures: list[Failure] = []
        for _, keys in self._read(self._known([path]), failures, fold=False):
            assert not isinstance(keys, torch.Tensor)
            return self.model.photo_vectors(keys)[0], keys
        raise QueryError(f"{path} cannot be read: {failures[0].reason}")

    def _known(self, paths: Sequence[Path]) -> list[Photo]:
        """The photos of the index at these paths, that path first; one that is not indexed has the id -1."""
        found = [None] * len(paths) if self.store is None else self.store.photos_at(paths)
        return [
            Photo(-1, "", 0, 0, (path,))
            if photo is None
            else replace(photo, paths=(path, *(other for other in photo.paths if other != path)))
            for path, photo in zip(paths, found, strict=True)
        ]

    def _indexed_texts(self, photo_QE: np.ndarray, k: int) -> tuple[list[str], np.ndarray, list[str]]:
        store = self._store()
        if not store.texts.count():
            raise QueryError(
                "The index holds no texts: add some with `qseek index --texts FILE`, or give them with --texts."
            )
        if self._text_index is None or self._text_index[0] != store.texts.version:
            self._text_index = store.texts.version, open_text_index(store)
        # One list for each of the photo's vectors; merged by maximum they hold the exact best (ARCHITECTURE, 2).
        ids, scores = merge_maximum(*self._text_index[1].search(photo_QE, k), k)
        ids, scores = ids[ids >= 0], scores[ids >= 0]
        return store.texts.read(ids), scores, []

    def _given_texts(self, photo_QE: np.ndarray, texts: list[str]) -> tuple[list[str], np.ndarray, list[str]]:
        if not texts:
            raise QueryError("There are no texts to choose from.")
        texts = list(dict.fromkeys(texts))
        vectors, cut = self.model.encode_texts(texts)
        itc = (vectors @ photo_QE.T).max(axis=1)
        order = np.argsort(-itc, kind="stable")
        num_cut = sum(count > 0 for count in cut)
        limit = self.model.tokenizer.max_tokens - 2
        were = "text was" if num_cut == 1 else "texts were"
        notes = (
            [f"{num_cut} {were} longer than the model reads and cut to {limit} tokens."] if num_cut else []
        )
        return [texts[i] for i in order], itc[order], notes

    def _text_notes(self, num_cut: int) -> list[str]:
        if not num_cut:
            return []
        limit = self.model.tokenizer.max_tokens - 2
        end = "token was" if num_cut == 1 else f"{num_cut} tokens were"
        return [f"The model reads {limit} tokens; the text's last {end} left out."]

    def _photos(self) -> SlotIndex:
        store = self._store()
        if self._photo_index is None or self._photo_index[0] != store.version:
            self._photo_index = store.version, open_photo_index(store)
        return self._photo_index[1]

    def _store(self) -> Store:
        if self.store is None:
            raise IndexStateError("There is no index: make one with `qseek index FOLDER`.")
        self.store.refresh()
        return self.store


def _checked(text: str) -> str:
    if not text.strip():
        raise QueryError("The text is empty; describe what the photo shows.")
    return text.strip()
