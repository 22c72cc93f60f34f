"""Keep texts that a photo can find in a table, each with its vector.

Shapes: T texts, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import IndexStateError
from engine.index.database import Table, make_ids_condition, retry_on_newest
from engine.index.schemas import make_fixed_lists, make_text_schema, read_fixed_lists
from engine.index.writer_lock import Held


class TextTable:
    """The texts of an index. They are only added, and each is there once.

    writing: returns a context that holds the writer's lock.
    """

    def __init__(self, table: Table, embed_dim: int, writing: Held) -> None:
        self.table = table
        self._embed_dim = embed_dim
        self._writing = writing

    @property
    def version(self) -> int:
        """Return the version of the table, which changes whenever the table does."""
        return self.table.version

    def refresh(self) -> None:
        """Move on to the newest version."""
        self.table.refresh()

    @retry_on_newest
    def count(self) -> int:
        """Return how many texts there are."""
        return self.table.count()

    def add(self, texts: Sequence[str], vectors_TE: np.ndarray) -> list[int]:
        """Commit texts with their unit vectors in one batch and return their ids; a text that is there keeps its id."""
        with self._writing():
            return self._append(texts, vectors_TE)

    @retry_on_newest
    def read(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the texts in the order of `ids`. Raises IndexStateError for an id that is not there."""
        if len(ids) == 0:
            return []
        asked_ids = [int(id_) for id_ in ids]
        rows = self.table.read(["id", "text"], make_ids_condition(asked_ids))
        text_by_id = dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
        gone = [id_ for id_ in asked_ids if id_ not in text_by_id]
        if gone:
            raise IndexStateError(f"Text {gone[0]} is not in the index. Ask again.")
        return [text_by_id[id_] for id_ in asked_ids]

    @retry_on_newest
    def list_ids(self) -> np.ndarray:
        """Return the ascending int64 ids of every text."""
        return np.sort(self.table.read(["id"])["id"].to_numpy())

    @retry_on_newest
    def read_vectors(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the vectors (N, E) float16 of texts in the order of `ids`, all of which must exist."""
        if len(ids) == 0:
            return np.zeros((0, self._embed_dim), np.float16)
        rows = self.table.read(["id", "vector"], make_ids_condition(np.asarray(ids).tolist()))
        rows = rows.take(pc.sort_indices(rows["id"]))
        return read_fixed_lists(rows["vector"])[np.searchsorted(rows["id"].to_numpy(), ids)]

    def iterate_vectors(
        self, after_id: int = -1, batch: int = 65536
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids int64, vectors (n, E) float16) of every text in id order, n <= batch."""
        ids = self.list_ids()
        ids = ids[np.searchsorted(ids, after_id, side="right") :]
        for start in range(0, len(ids), batch):
            part = ids[start : start + batch]
            yield part, self.read_vectors(part)

    def _append(self, texts: Sequence[str], vectors_TE: np.ndarray) -> list[int]:
        rows = self.table.read(["id", "text"])
        known = dict(zip(rows["text"].to_pylist(), rows["id"].to_pylist(), strict=True))
        places: dict[str, int] = {}
        for place, text in enumerate(texts):
            if text not in known:
                places.setdefault(text, place)
        if places:
            next_id = max(known.values(), default=-1) + 1
            ids = range(next_id, next_id + len(places))
            vectors = np.asarray(vectors_TE)[list(places.values())]
            columns = [ids, list(places), make_fixed_lists(vectors)]
            self.table.append(pa.table(columns, schema=make_text_schema(self._embed_dim)))
            known.update(zip(places, ids, strict=True))
        return [known[text] for text in texts]
