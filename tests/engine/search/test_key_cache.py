"""The cache holds the keys of photos, and drops the least recently used ones when its memory is full."""

from __future__ import annotations

import torch

from engine.search.key_cache import KeyCache

ONE = 2 * 2 * 3 * 4 * 5 * 4  # two layers of keys and values, (H, N, d) = (3, 4, 5) float32


def keys(*numbers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 4, 5)
    return [(rows + layer, -rows - layer) for layer in (0.0, 0.5)]


def test_rows_come_back_in_the_order_asked() -> None:
    held = KeyCache(10 * ONE)
    held.put(["a", "b", "c"], keys(1, 2, 3))
    assert held.num_bytes == 3 * ONE and "b" in held and "d" not in held
    for actual, want in zip(held.take(["c", "a", "c"]), keys(3, 1, 3), strict=True):
        assert torch.equal(actual[0], want[0]) and torch.equal(actual[1], want[1])


def test_the_least_recently_used_go_first() -> None:
    held = KeyCache(3 * ONE)
    held.put(["a", "b", "c"], keys(1, 2, 3))
    held.take(["a"])
    held.put(["d"], keys(4))
    assert [digest for digest in "abcd" if digest in held] == ["a", "c", "d"]
    assert held.num_bytes == 3 * ONE


def test_a_photo_is_held_once_and_an_unknown_one_not_at_all() -> None:
    held = KeyCache(10 * ONE)
    held.put(["a", "", "a"], keys(1, 2, 3))
    held.put(["a"], keys(4))
    assert held.num_bytes == ONE and "" not in held
    assert held.take(["a"])[0][0].flatten()[0] == 1


def test_what_is_held_is_a_copy() -> None:
    held, given = KeyCache(10 * ONE), [(k.clone(), v.clone()) for k, v in keys(1, 2)]
    held.put(["a", "b"], given)
    given[0][0].zero_()
    assert held.take(["a"])[0][0].flatten()[0] == 1


def test_no_memory_holds_nothing() -> None:
    held = KeyCache(0)
    held.put(["a"], keys(1))
    assert "a" not in held and held.num_bytes == 0
    small = KeyCache(ONE - 1)
    small.put(["a"], keys(1))
    assert "a" not in small and small.num_bytes == 0
