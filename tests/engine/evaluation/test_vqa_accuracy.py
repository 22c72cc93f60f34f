"""Answers are spelled and scored as by VQA's official code; each of its rules has an example worked out by hand."""

from __future__ import annotations

import pytest

from engine.evaluation.vqa_accuracy import (
    CONTRACTIONS,
    gqa_accuracy,
    mean_accuracy,
    normalise_answer,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("  a red\nball\t", "red ball"),
        ("an apple on the table", "apple on table"),
        ("two", "2"),
        ("none", "0"),
        ("Ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("wouldntve", "wouldntve"),
        ("wouldnt've", "wouldn't've"),
        ("somebody'd", "somebodyd"),
        ("well id", "well id"),
        ("it's", "it's"),
        ("t-shirt", "t shirt"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("(left)", "left"),
        ("red, white and blue", "red white and blue"),
        ("red,white", "red white"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("3.5", "3.5"),
        ("u.s.", "us"),
        ("5:30", "5:30"),
        ("what?", "what"),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_by_the_official_code(answer: str, normalised: str) -> None:
    assert normalise_answer(answer) == normalised


def test_contractions_are_the_official_ones() -> None:
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["twas"] == "'twas" and CONTRACTIONS["yall'd've"] == "y'all'd've"
    assert not {"ill", "well", "shed", "hell", "were", "id", "im", "lets"} & CONTRACTIONS.keys()


@pytest.mark.parametrize(
    ("num_people", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)]
)
def test_accuracy_grows_with_the_people_who_give_the_answer(num_people: int, accuracy: float) -> None:
    """Check the table of visualqa.org, in which each person is left out once."""
    references = ["dog"] * num_people + ["cat"] * (10 - num_people)
    assert vqa_accuracy("Dog.", references) == pytest.approx(accuracy)


def test_where_all_agree_nothing_is_normalised() -> None:
    assert vqa_accuracy("two", ["two"] * 10) == 1
    assert vqa_accuracy("2", ["two"] * 10) == 0
    assert vqa_accuracy("2", ["two"] * 9 + ["a"]) == 1


def test_gqa_accepts_an_answer_as_it_is_or_normalised() -> None:
    assert gqa_accuracy("t-shirt", "t-shirt") == 1
    assert gqa_accuracy("The dog.", "dog") == 1
    assert gqa_accuracy("dogs", "dog") == 0


def test_accuracy_is_averaged_over_all_questions_and_each_group() -> None:
    kinds = [{"answer type": "number"}, {"answer type": "yes/no"}, {"answer type": "yes/no"}, {}]
    means = mean_accuracy([0.3, 1, 0, 0.7], kinds)
    assert means == {"all": (50, 4), "answer type: number": (30, 1), "answer type: yes/no": (50, 2)}
