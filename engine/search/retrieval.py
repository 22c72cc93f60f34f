"""Find the candidates for a question: photos by ITC, and photos whose captions are near to the text.

Shapes: N photos, K texts, Q queries, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.errors import QueryError
from engine.index.store import Store
from engine.search.caption_search import CaptionSearch, reopen_if_changed
from engine.vectors.slot_bounds import merge_maximum
from engine.vectors.slot_index import SlotIndex
from engine.vectors.table_indexes import open_photo_index, open_text_index

CAPTIONED_SHARE = 4
"""Number of candidates by ITC for each candidate by its caption.

On Flickr8k's dev photos, 32 candidates by caption beside 128 by ITC are 10 new photos a question. With an earlier
mini's captions the right photo was among the candidates in 85.3 instead of 83.1 of 100 questions, with people's in
95.8.
"""


@dataclass(frozen=True)
class Candidates:
    """Photos that may answer a text.

    photo_ids: (N,) int64, ordered by ITC with the best first, then the photos that only their captions brought. itc:
    (N,) cosines. to_rerank: the ascending numbers of the candidates that ITM reads.
    """

    photo_ids: np.ndarray
    itc: np.ndarray
    to_rerank: np.ndarray


class Retrieval:
    """A search for candidates in a store, whose FAISS indexes are opened again when their tables have changed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.captions = CaptionSearch(store)
        self._photo_slots: tuple[int, SlotIndex] | None = None
        self._text_slots: tuple[int, SlotIndex] | None = None

    def close(self) -> None:
        """End the threads of the FAISS indexes. A later question opens them again."""
        self.captions.close()
        for slots in (self._photo_slots, self._text_slots):
            if slots is not None:
                slots[1].close()
        self._photo_slots = self._text_slots = None

    def find_candidates(
        self, text_E: np.ndarray, top: int, rerank: int, caption_weight: float, live: np.ndarray
    ) -> Candidates:
        """Return the photos that may answer a text, given by its unit vector.

        top: the number of hits that are asked for. rerank: the number of nearest photos that ITM reads, 0 for none.
        caption_weight: the factor of the cosine of text and caption in the score. Captions bring candidates when it is
        not 0 or ITM reads some. live: the ids of the photos that may be found.
        """
        ids, itc = self._photo_index().search(text_E[None], max(top, rerank), live)
        ids, itc = ids[0][ids[0] >= 0], itc[0][ids[0] >= 0]
        is_reranked = np.arange(len(ids)) < rerank
        if rerank or caption_weight:
            num_captions = (rerank or top) if caption_weight else -(-rerank // CAPTIONED_SHARE)
            captioned_ids = self.captions.find_nearest(text_E, num_captions, live)
            new_ids, new_itc = self._sort_by_itc(np.setdiff1d(captioned_ids, ids), text_E)
            is_reranked = np.concatenate(
                [is_reranked | np.isin(ids, captioned_ids), np.ones(len(new_ids), bool)]
            )
            ids, itc = np.concatenate([ids, new_ids]), np.concatenate([itc, new_itc])
        return Candidates(ids, itc, np.flatnonzero(is_reranked) if rerank else np.zeros(0, np.int64))

    def compute_caption_bonus(
        self, text_E: np.ndarray, photo_ids: np.ndarray, caption_weight: float
    ) -> np.ndarray:
        """Return the part (N,) float64 of each photo's score that its caption adds; zeros for weight 0."""
        if not caption_weight:
            return np.zeros(len(photo_ids))
        return caption_weight * self.captions.compute_cosines(text_E, photo_ids).astype(np.float64)

    def find_similar(self, photo_QE: np.ndarray, k: int, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and mean cosines of the k photos that are most like a photo, the best first.

        live: the ids of the photos that may be found.
        """
        ids, cosines = self._photo_index().search_slots(photo_QE, k, live)
        # Vectors are stored in float16, so that the product of two equal ones may be a little above 1.
        return ids[ids >= 0], np.clip(cosines[ids >= 0], -1, 1)

    def find_texts(self, photo_QE: np.ndarray, k: int) -> tuple[list[str], np.ndarray]:
        """Return at most k indexed texts and their ITC with a photo, the best first.

        Raises QueryError when the index holds no texts.
        """
        if not self.store.texts.count():
            raise QueryError(
                "The index holds no texts. Add some with `qseek index --texts FILE`, or give them with --texts."
            )
        # There is a list for each of the photo's vectors; merged by maximum they hold the exact best texts.
        ids, itc = merge_maximum(*self._text_index().search(photo_QE, k), k)
        ids, itc = ids[ids >= 0], itc[ids >= 0]
        return self.store.texts.read(ids), itc

    def _sort_by_itc(self, photo_ids: np.ndarray, text_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return photos and their ITC with a text, the best first."""
        itc = (self.store.read_vectors(photo_ids).astype(np.float32) @ text_E).max(axis=1, initial=-1.0)
        order = np.argsort(-itc, kind="stable")
        return photo_ids[order], itc[order]

    def _photo_index(self) -> SlotIndex:
        self._photo_slots = reopen_if_changed(
            self.store.version, self._photo_slots, lambda: open_photo_index(self.store)
        )
        return self._photo_slots[1]

    def _text_index(self) -> SlotIndex:
        version = self.store.texts.version
        self._text_slots = reopen_if_changed(version, self._text_slots, lambda: open_text_index(self.store))
        return self._text_slots[1]


def sort_by_itc(
    texts: list[str], vectors_KE: np.ndarray, photo_QE: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Return texts and their ITC (K,) with a photo, the best first."""
    itc = (vectors_KE @ photo_QE.T).max(axis=1)
    order = np.argsort(-itc, kind="stable")
    return [texts[row] for row in order], itc[order]
