"""Recall equals results worked out by hand and by brute force, and the original's evaluation (golden h)."""

from __future__ import annotations

import numpy as np
import pytest
from reference import load_golden

from engine.evaluation.recall import (
    compute_recall,
    find_best_ranks,
    rank_candidates,
    rank_columns,
    recall,
    select_best_columns,
)


def test_recall_equals_results_worked_out_by_hand() -> None:
    # Photo 0 has captions 0 and 1, photo 1 has caption 2, photo 2 has caption 3.
    owner = np.array([0, 0, 1, 2])
    scores = np.array([[0.9, 0.1, 0.8, 0.0], [0.2, 0.5, 0.3, 0.9], [0.3, 0.4, 0.2, 0.1]])
    percent = recall(scores, owner)
    assert percent["TR@1"] == pytest.approx(100 / 3)  # photo 0 alone: its best caption is 0
    assert percent["IR@1"] == pytest.approx(100 / 4)  # caption 0 alone
    assert percent["TR@5"] == percent["IR@5"] == 100
    assert percent["R mean"] == pytest.approx((percent["TR mean"] + percent["IR mean"]) / 2)


def test_equal_scores_are_ordered_by_number() -> None:
    owner = np.array([1, 0])
    percent = recall(np.zeros((2, 2)), owner)
    # Caption 0 has photo 1, which is second of the photos (0, 1), and caption 1 has photo 0, which is first. For the
    # photos the captions are ordered alike.
    assert percent["IR@1"] == percent["TR@1"] == 50


def test_recall_equals_that_of_sorted_lists() -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), 5)
    scores = rng.integers(0, 12, (30, 150)).astype(float) + 3 * (owner == np.arange(30)[:, None])
    percent = recall(scores, owner)
    for k in (1, 5, 10):
        ir = [owner[m] in sorted(range(30), key=lambda n: (-scores[n, m], n))[:k] for m in range(150)]
        tr = [
            any(owner[m] == n for m in sorted(range(150), key=lambda m: (-scores[n, m], m))[:k])
            for n in range(30)
        ]
        assert percent[f"IR@{k}"] == pytest.approx(100 * np.mean(ir))
        assert percent[f"TR@{k}"] == pytest.approx(100 * np.mean(tr))


def test_recall_equals_that_of_the_originals_evaluation() -> None:
    """Read golden h: the score matrices of both directions, -100 where a pair was not reranked."""
    info, golden = load_golden("h_retrieval_std")
    owner = np.array(info["txt2img"])
    by_photo, by_text = golden["score_i2t"].numpy(), golden["score_t2i"].numpy().T
    tr, ir = recall(by_photo, owner), recall(by_text, owner)
    assert tr["TR@1"] == pytest.approx(info["metrics"]["txt_r1"])
    assert ir["IR@1"] == pytest.approx(info["metrics"]["img_r1"])
    # The pairs that the original left out of its top 4 (score -100) are those that we leave out.
    itc = golden["itc"].numpy()
    for scores, reranked in ((itc, by_photo), (itc.T, by_text.T)):
        chosen = np.zeros(scores.shape, bool)
        np.put_along_axis(chosen, select_best_columns(scores, 4), True, axis=1)
        assert np.array_equal(chosen, reranked > -100)


def test_candidates_rank_as_in_whole_rows() -> None:
    """Compare ranks among k candidates with ranks in a full matrix in which all others have their score - 1000."""
    rng = np.random.default_rng(1)
    itc, logits = rng.integers(0, 9, (20, 40)) / 10, rng.integers(0, 9, (20, 40)) / 10
    chosen = select_best_columns(itc, 12)
    assert (np.diff(np.take_along_axis(itc, chosen, axis=1), axis=1) <= 0).all()
    ranks = rank_candidates(np.take_along_axis(logits + itc, chosen, axis=1), chosen)
    whole = itc - 1000
    np.put_along_axis(whole, chosen, np.take_along_axis(logits + itc, chosen, axis=1), axis=1)
    for column in range(12):
        assert np.array_equal(ranks[:, column], rank_columns(whole, chosen[:, column]))


def test_the_best_of_a_photos_own_captions_counts() -> None:
    assert find_best_ranks(np.array([3, 1, 0, 7]), np.array([0, 0, 1, 2]), 3).tolist() == [1, 0, 7]
    percent = compute_recall(np.array([0, 4, 9]), np.array([1, 5, 10, 0]))
    assert [percent[name] for name in ("TR@1", "TR@5", "IR@5", "IR@10")] == pytest.approx(
        [100 / 3, 200 / 3, 50, 75]
    )
