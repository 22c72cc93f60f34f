"""Texts are kept once."""

import numpy as np
import pytest
from store_rows import E

from engine.errors import IndexStateError
from engine.index.store import Store


def test_texts_are_kept_once(store: Store) -> None:
    vectors = np.random.default_rng(0).standard_normal((4, E)).astype(np.float16)
    assert store.add_texts(["a dog", "it's\n東京", "a dog", ""], vectors) == [0, 1, 0, 2]
    assert store.add_texts(["new", "a dog"], vectors[:2]) == [3, 0]
    again = Store.open(store.folder)
    assert again.texts([3, 1, 0, 1]) == ["new", "it's\n東京", "a dog", "it's\n東京"]
    assert again.num_texts == 4 and again.all_text_ids().tolist() == [0, 1, 2, 3]
    want = vectors[[0, 1, 3, 0]]
    np.testing.assert_array_equal(again.text_vectors([3, 0]), want[[3, 0]])
    (ids, got), (more_ids, more) = again.iter_text_vectors(after_id=0, batch=2)
    np.testing.assert_array_equal(np.concatenate([got, more]), want[1:])
    assert [*ids, *more_ids] == [1, 2, 3]
    with pytest.raises(IndexStateError, match="text 9"):
        again.texts([9])
