"""Recall on matrices written by hand, against brute force, and against the original's evaluation (golden h)."""

from __future__ import annotations

import numpy as np
import pytest
from reference import load_golden

from engine.evaluation.recall import (
    compute_recall,
    lowest_rank_by_photo,
    rank_candidates,
    rank_columns,
    recall,
    select_best_columns,
)


def test_by_hand() -> None:
    # Photo 0 has captions 0 and 1, photo 1 has caption 2, photo 2 has caption 3.
    owner = np.array([0, 0, 1, 2])
    scores = np.array([[0.9, 0.1, 0.8, 0.0], [0.2, 0.5, 0.3, 0.9], [0.3, 0.4, 0.2, 0.1]])
    got = recall(scores, owner)
    assert got["TR@1"] == pytest.approx(100 / 3)  # photo 0 alone: its best caption is 0
    assert got["IR@1"] == pytest.approx(100 / 4)  # caption 0 alone
    assert got["TR@5"] == got["IR@5"] == 100
    assert got["R mean"] == pytest.approx((got["TR mean"] + got["IR mean"]) / 2)


def test_equal_scores_go_by_number() -> None:
    owner = np.array([1, 0])
    got = recall(np.zeros((2, 2)), owner)
    # Caption 0 sees photos (0, 1): its own is second; caption 1's own is first. The same for the photos.
    assert got["IR@1"] == got["TR@1"] == 50


def test_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), 5)
    scores = rng.integers(0, 12, (30, 150)).astype(float) + 3 * (owner == np.arange(30)[:, None])
    got = recall(scores, owner)
    for k in (1, 5, 10):
        ir = [owner[m] in sorted(range(30), key=lambda n: (-scores[n, m], n))[:k] for m in range(150)]
        tr = [
            any(owner[m] == n for m in sorted(range(150), key=lambda m: (-scores[n, m], m))[:k])
            for n in range(30)
        ]
        assert got[f"IR@{k}"] == pytest.approx(100 * np.mean(ir))
        assert got[f"TR@{k}"] == pytest.approx(100 * np.mean(tr))


def test_the_originals_evaluation() -> None:
    """Golden h: its score matrices of both directions, -100 where a pair was not reranked."""
    info, want = load_golden("h_retrieval_std")
    owner = np.array(info["txt2img"])
    by_photo, by_text = want["score_i2t"].numpy(), want["score_t2i"].numpy().T
    tr, ir = recall(by_photo, owner), recall(by_text, owner)
    assert tr["TR@1"] == pytest.approx(info["metrics"]["txt_r1"])
    assert ir["IR@1"] == pytest.approx(info["metrics"]["img_r1"])
    # What the original left out of its top 4 (score -100) is what we would leave out.
    itc = want["itc"].numpy()
    for scores, reranked in ((itc, by_photo), (itc.T, by_text.T)):
        chosen = np.zeros(scores.shape, bool)
        np.put_along_axis(chosen, select_best_columns(scores, 4), True, axis=1)
        assert np.array_equal(chosen, reranked > -100)


def test_ranks_of_candidates_against_whole_rows() -> None:
    """Reranking k candidates and leaving the rest behind them, beside a full matrix with -1000 for the rest."""
    rng = np.random.default_rng(1)
    itc, logits = rng.integers(0, 9, (20, 40)) / 10, rng.integers(0, 9, (20, 40)) / 10
    chosen = select_best_columns(itc, 12)
    assert (np.diff(np.take_along_axis(itc, chosen, axis=1), axis=1) <= 0).all()
    got = rank_candidates(np.take_along_axis(logits + itc, chosen, axis=1), chosen)
    whole = itc - 1000
    np.put_along_axis(whole, chosen, np.take_along_axis(logits + itc, chosen, axis=1), axis=1)
    for column in range(12):
        assert np.array_equal(got[:, column], rank_columns(whole, chosen[:, column]))


def test_the_best_own_caption_counts() -> None:
    assert lowest_rank_by_photo(np.array([3, 1, 0, 7]), np.array([0, 0, 1, 2]), 3).tolist() == [1, 0, 7]
    got = compute_recall(np.array([0, 4, 9]), np.array([1, 5, 10, 0]))
    assert [got[name] for name in ("TR@1", "TR@5", "IR@5", "IR@10")] == pytest.approx(
        [100 / 3, 200 / 3, 50, 75]
    )
