"""BLEU, ROUGE-L and CIDEr-D equal published and hand-worked examples, and the results of coco-caption's scorers."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from engine.errors import DataError
from engine.evaluation.caption_metrics import bleu, cider_d, measure_longest_common, rouge_l, score_captions


def split_texts(texts: list[str]) -> list[list[str]]:
    return [text.split() for text in texts]


def test_bleu_clips_counts_as_in_papineni() -> None:
    """Check Papineni et al. 2002, section 2.1: example 2 (2 of 7), example 1 (17 of 18 words, 10 of 17 pairs)."""
    references = split_texts(["the cat is on the mat", "there is a cat on the mat"])
    assert bleu(split_texts(["the the the the the the the"]), [references])[0] == pytest.approx(100 * 2 / 7)
    candidate = split_texts(
        ["it is a guide to action which ensures that the military always obeys the commands of the party"]
    )
    references = split_texts([
        "it is a guide to action that ensures that the military will forever heed party commands",
        "it is the guiding principle which guarantees the military forces always being under the command of the party",
        "it is the practical guide for the army always to heed the directions of the party",
    ])  # fmt: skip
    scores = bleu(candidate, [references])
    assert scores[0] == pytest.approx(100 * 17 / 18)
    assert scores[1] == pytest.approx(100 * math.sqrt(17 / 18 * 10 / 17))


def test_bleu_adds_up_over_the_set_and_pays_for_brevity() -> None:
    scores = bleu(split_texts(["a b", "c"]), [split_texts(["a b c d"]), split_texts(["c", "c c c"])])
    assert scores[0] == pytest.approx(100 * math.exp(1 - 5 / 3)), "3 words for 5, all of them right"
    between = bleu(split_texts(["a b"]), [split_texts(["a", "a b c"])])
    assert between[0] == pytest.approx(100), "of two references as close the shorter one counts: no penalty"


def test_rouge_gives_the_examples_of_lin() -> None:
    """Check the gunman sentences of Lin 2004, section 3.1, where precision and recall are equal, whatever beta is."""
    reference = [split_texts(["police killed the gunman"])]
    scores = [
        rouge_l(split_texts([text]), reference)[0]
        for text in ("police kill the gunman", "the gunman kill police", "the gunman police killed")
    ]
    assert scores == pytest.approx([75, 50, 50])
    uneven = rouge_l(split_texts(["a b"]), [split_texts(["a b c d"])])[0]
    assert uneven == pytest.approx(100 * 2.44 * 0.5 / (0.5 + 1.44)), "precision 1, recall 1/2"


def test_the_longest_common_subsequence_equals_that_of_the_usual_table() -> None:
    def fill_table(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return 0
        lengths = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                longer = lengths[i, j] + 1
                lengths[i + 1, j + 1] = longer if x == y else max(lengths[i, j + 1], lengths[i + 1, j])
        return int(lengths[-1, -1])

    draw = random.Random(0)
    for _ in range(300):
        a, b = (draw.choices("abcd", k=draw.randint(0, 12)) for _ in range(2))
        assert measure_longest_common(a, b) == fill_table(a, b)


def test_cider_equals_scores_worked_out_by_hand() -> None:
    """Compare two photos without a common word: every weight is log 2 and cancels in the cosines."""
    references = [split_texts(["a b"]), split_texts(["c d e"])]
    equal = cider_d(split_texts(["a b", "x"]), references)
    assert equal == pytest.approx([1000 * 2 / 4, 0]), "all n-grams of 1 and 2 words, none of 3 and 4"
    repeated = cider_d(split_texts(["a a", "c d e"]), references)
    assert repeated == pytest.approx([1000 / 4 / (2 * math.sqrt(2)), 1000 * 3 / 4]), (
        "the second a brings nothing"
    )
    short = cider_d(split_texts(["a b", "c d"]), references)[1]
    cosines = 2 / math.sqrt(2 * 3) + 1 / math.sqrt(1 * 2)
    assert short == pytest.approx(1000 / 4 * cosines * math.exp(-1 / 72)), "one pair against two"


def test_cider_weighs_common_words_less() -> None:
    references = [split_texts(["a dog"]), split_texts(["a cat"]), split_texts(["a cow"])]
    right_article, right_noun, _ = cider_d(split_texts(["a x", "y cat", "a cow"]), references)
    assert right_article == 0, "a is in every photo's references: log 1"
    assert right_noun > 100


def draw_set(seed: int, num_photos: int) -> tuple[list[str], list[list[str]]]:
    """Draw short texts of few words, so that n-grams repeat; some captions are empty, and some photos have one text."""
    draw = random.Random(seed)

    def draw_text(least: int) -> str:
        return " ".join(
            draw.choices(["a", "dog", "runs", "in", "the", "snow", "red"], k=draw.randint(least, 14))
        )

    candidates = [draw_text(0) if draw.random() < 0.9 else "" for _ in range(num_photos)]
    return candidates, [[draw_text(1) for _ in range(draw.randint(1, 5))] for _ in range(num_photos)]


@pytest.mark.parametrize(("seed", "num_photos"), [(0, 40), (1, 1), (2, 2), (3, 120)])
def test_scores_equal_those_of_coco_caption(seed: int, num_photos: int) -> None:
    candidates, references = draw_set(seed, num_photos)
    if num_photos > 2:
        candidates[0], candidates[1], references[2] = "", "dog dog dog dog dog dog", [""]
    results = {row: [text] for row, text in enumerate(candidates)}
    truths = dict(enumerate(references))
    candidate_words, reference_words = split_texts(candidates), [split_texts(texts) for texts in references]

    scorer = BleuScorer(n=4)
    for text, photo_references in zip(candidates, references, strict=True):
        scorer += (text, photo_references)
    expected = scorer.compute_score(option="closest")[0]
    assert bleu(candidate_words, reference_words) == pytest.approx(
        [100 * score for score in expected], abs=1e-6
    )
    assert rouge_l(candidate_words, reference_words) == pytest.approx(
        100 * Rouge().compute_score(truths, results)[1], abs=1e-6
    )
    assert cider_d(candidate_words, reference_words) == pytest.approx(
        100 * Cider().compute_score(truths, results)[1], abs=1e-6
    )


def test_texts_are_scored_by_every_measure() -> None:
    captions = ["A dog runs.", "Two cats sleep!"]
    references = [["a dog runs", "the dog"], ["two cats sleep , curled"]]
    scores = score_captions(captions, references)
    assert list(scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    assert scores["BLEU-1"] == pytest.approx(100 * math.exp(1 - 7 / 6))
    swapped = score_captions(captions[::-1], references)
    assert swapped["CIDEr-D"] == 0 < scores["CIDEr-D"]


@pytest.mark.parametrize(
    ("candidates", "references", "words"),
    [
        (["a"], [["a"], ["b"]], "1 captions for 2 photos"),
        ([], [], "no captions"),
        (["a", "b"], [["a"], []], "1 of 2 photos have no references"),
    ],
)
def test_captions_that_do_not_fit_their_references_are_refused(
    candidates: list[str], references: list[list[str]], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        score_captions(candidates, references)
