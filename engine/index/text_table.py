"""The table of texts: captions that a photo can find."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import IndexStateError
from engine.index.database import Table, ids_condition
from engine.index.schemas import fixed_lists, text_schema, to_fixed_lists


class TextTable:
    """Texts are only added; each is there once."""

    def __init__(self, table: Table, embed_dim: int) -> None:
        self.table = table
        self._embed_dim = embed_dim

    def append(self, texts: Sequence[str], vectors_TE: np.ndarray) -> list[int]:
        """Commit those that are new; the ids of all of them, in their order."""
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
            columns = [ids, list(places), to_fixed_lists(vectors)]
            self.table.append(pa.table(columns, schema=text_schema(self._embed_dim)))
            known.update(zip(places, ids, strict=True))
        return [known[text] for text in texts]

    def texts(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        if len(ids) == 0:
            return []
        wanted = [int(id_) for id_ in ids]
        rows = self.table.read(["id", "text"], ids_condition(wanted))
        known = dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
        gone = [id_ for id_ in wanted if id_ not in known]
        if gone:
            raise IndexStateError(f"text {gone[0]} is not in the index; ask again")
        return [known[id_] for id_ in wanted]

    def ids(self) -> np.ndarray:
        return np.sort(self.table.read(["id"])["id"].to_numpy())

    def vectors(self, where: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64 ascending, vectors (n, E) float16) of the rows that meet an SQL condition."""
        rows = self.table.read(["id", "vector"], where)
        rows = rows.take(pc.sort_indices(rows["id"]))
        return rows["id"].to_numpy(), fixed_lists(rows["vector"])
