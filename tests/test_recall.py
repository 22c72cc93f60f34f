"""Recall on matrices written by hand, against brute force, and against the original's evaluation (golden h)."""

import numpy as np
import pytest
import torch
from reference import load_golden
from tiny import SIDE, tiny_model

from engine.blip2.model import Model
from engine.errors import DataError
from engine.recall import (
    candidates,
    candidates_of_rows,
    evaluate_retrieval,
    merged,
    recall,
    rerank_pairs,
    reranked,
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
    info, want = load_golden("h_retrieval_std")
    owner = np.array(info["txt2img"])
    by_photo, by_text = want["score_i2t"].numpy(), want["score_t2i"].numpy().T
    got = merged(recall(by_photo, owner), recall(by_text, owner))
    assert got["TR@1"] == pytest.approx(info["metrics"]["txt_r1"])
    assert got["IR@1"] == pytest.approx(info["metrics"]["img_r1"])
    # What the original left out of its top 4 (score -100) is what we would leave out.
    itc = want["itc"].numpy()
    assert np.array_equal(candidates_of_rows(itc, 4), by_photo > -100)
    assert np.array_equal(candidates_of_rows(itc.T, 4).T, by_text > -100)
    assert torch.isfinite(want["itc"]).all()


def test_what_is_not_reranked_keeps_its_order() -> None:
    """Cosines that differ by less than float32 can tell a thousand apart."""
    itc = np.array([[0.5, 0.500003, 0.500006, 0.1]], np.float32)
    logits = np.array([[-np.inf, -np.inf, -np.inf, -50.0]], np.float32)
    got = reranked(itc, logits, np.isfinite(logits))
    assert np.argsort(-got[0], kind="stable").tolist() == [3, 2, 1, 0]
    assert got[0, 3] == pytest.approx(-49.9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


PICTURES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
WORDS = ("red", "green", "blue", "dog", "cat", "snow", "house", "runs", "in", "the", "on", "sea")
CAPTIONS = [[f"a {word}", f"the {word} in the house"][: 1 + number % 2] for number, word in enumerate(WORDS)]


def all_scores(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """ITC and match logit of every pair, one by one."""
    texts = [text for group in CAPTIONS for text in group]
    itc, itm = np.zeros((12, len(texts))), np.zeros((12, len(texts)))
    for row, picture in enumerate(PICTURES):
        patches = model.encode_patches(picture[None])
        for column, text in enumerate(texts):
            itc[row, column] = (model.encode_photos(patches)[0] @ model.encode_texts([text])[0][0]).max()
            itm[row, column] = model.match(model.photo_keys(patches), [text])[0, 1]
    return itc, itm


def test_the_whole_protocol_against_brute_force(model: Model) -> None:
    assert PICTURES.shape == (12, SIDE, SIDE, 3)
    itc, itm = all_scores(model)
    owner = np.repeat(np.arange(12), [len(group) for group in CAPTIONS])
    for k in (0, 2, 5, 100):
        report = evaluate_retrieval(model, PICTURES, CAPTIONS, k=k)
        assert (report.num_photos, report.num_captions, report.k) == (12, 18, k)
        assert report.before == pytest.approx(recall(itc, owner))
        if not k:
            assert report.after == {} and report.num_pairs == 0
            continue
        tr, ir = {}, {}
        for at in (1, 5, 10):
            found = 0
            for row in range(12):
                order = sorted(range(18), key=lambda m, n=row: -itc[n, m])
                best = sorted(order[:k], key=lambda m, n=row: -itm[n, m] - itc[n, m]) + order[k:]
                found += any(owner[m] == row for m in best[:at])
            tr[at] = 100 * found / 12
            found = 0
            for column in range(18):
                order = sorted(range(12), key=lambda n, m=column: -itc[n, m])
                best = sorted(order[:k], key=lambda n, m=column: -itm[n, m] - itc[n, m]) + order[k:]
                found += owner[column] in best[:at]
            ir[at] = 100 * found / 18
        assert [report.after[f"TR@{at}"] for at in tr] == pytest.approx(list(tr.values()))
        assert [report.after[f"IR@{at}"] for at in ir] == pytest.approx(list(ir.values()))
        assert report.num_pairs == candidates(itc, k).sum()


def test_only_the_wanted_pairs_are_read(model: Model) -> None:
    itc, itm = all_scores(model)
    texts = [text for group in CAPTIONS for text in group]
    wanted = candidates(itc, 3)
    assert 0 < wanted.sum() < wanted.size
    got = rerank_pairs(model, model.encode_patches(PICTURES), texts, wanted, lambda line: None)
    assert np.array_equal(np.isfinite(got), wanted)
    np.testing.assert_allclose(got[wanted], itm[wanted], atol=1e-4)


def test_pictures_without_captions_are_refused(model: Model) -> None:
    with pytest.raises(DataError, match="2 of 12 pictures have no captions"):
        evaluate_retrieval(model, PICTURES, [[], *CAPTIONS[1:11], []])
    with pytest.raises(DataError, match="12 pictures and captions of 11"):
        evaluate_retrieval(model, PICTURES, CAPTIONS[:11])
    with pytest.raises(DataError, match="no pictures"):
        evaluate_retrieval(model, PICTURES[:0], [])
