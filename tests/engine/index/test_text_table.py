"""Texts are kept once, and read again when another process has compacted a reader's version away."""

from __future__ import annotations

import numpy as np
import pytest
from store_rows import E

from engine.errors import IndexStateError
from engine.index.store import Store


def test_texts_are_kept_once(store: Store) -> None:
    vectors = np.random.default_rng(0).standard_normal((4, E)).astype(np.float16)
    assert store.texts.add(["a dog", "it's\n東京", "a dog", ""], vectors) == [0, 1, 0, 2]
    assert store.texts.add(["new", "a dog"], vectors[:2]) == [3, 0]
    again = Store.open(store.folder)
    assert again.texts.read([3, 1, 0, 1]) == ["new", "it's\n東京", "a dog", "it's\n東京"]
    assert again.texts.count() == 4 and again.texts.list_ids().tolist() == [0, 1, 2, 3]
    want = vectors[[0, 1, 3, 0]]
    np.testing.assert_array_equal(again.texts.read_vectors([3, 0]), want[[3, 0]])
    (ids, vectors_of_first_batch), (more_ids, more) = again.texts.iterate_vectors(after_id=0, batch=2)
    np.testing.assert_array_equal(np.concatenate([vectors_of_first_batch, more]), want[1:])
    assert [*ids, *more_ids] == [1, 2, 3]
    with pytest.raises(IndexStateError, match="Text 9"):
        again.texts.read([9])


def test_a_reader_goes_on_after_a_compaction(store: Store) -> None:
    texts = [f"text {number}" for number in range(6)]
    vectors_TE = np.random.default_rng(6).standard_normal((6, E)).astype(np.float16)
    for number, text in enumerate(texts):
        store.texts.add([text], vectors_TE[number : number + 1])
    readers = [Store.open(store.folder) for _ in range(4)]
    store.texts.table.compact(0)
    assert readers[0].texts.version < store.texts.version
    assert readers[0].texts.read([4, 0]) == ["text 4", "text 0"]
    assert readers[1].texts.list_ids().tolist() == list(range(6))
    np.testing.assert_array_equal(readers[2].texts.read_vectors([5, 1, 5]), vectors_TE[[5, 1, 5]])
    ((ids, vectors),) = readers[3].texts.iterate_vectors(after_id=2)
    assert ids.tolist() == [3, 4, 5]
    np.testing.assert_array_equal(vectors, vectors_TE[3:])
    assert {reader.texts.version for reader in readers} == {store.texts.version}
