"""Score answers to questions about photos as VQAv2, OK-VQA and GQA do, with pure functions of texts.

VQA: `vqaEval.py` of the official GT-Vision-Lab/VQA (also OK-VQA's evaluation); the accuracy is Antol et al.
2015 (arXiv:1505.00468) as visualqa.org/evaluation.html averages it. GQA: its `eval.py` compares texts as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
"""Words that become digits: `manualMap` of the official code. "None" is 0."""
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Marks that are removed: `punct` of the official code. An apostrophe, a colon and a period are not among them."""
GROUPED_DIGITS = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
"""Periods that are removed: `periodStrip` of the official code. To spare 3.5 it spares every period before a digit."""

_ONE_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_MORE_APOSTROPHES = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've 'ow's'at
"""


def _list_misspellings(words: str) -> dict[str, str]:
    """Return each word by its spellings with one apostrophe left out."""
    spellings = {}
    for word in words.split():
        for position, letter in enumerate(word):
            if letter == "'":
                spellings[word[:position] + word[position + 1 :]] = word
    return spellings


CONTRACTIONS = {**_list_misspellings(_ONE_APOSTROPHE + _MORE_APOSTROPHES), "somebody'd": "somebodyd"}
"""Words by their spellings with one apostrophe less: `contractions` of the official code.

The apostrophe comes back; "ill", "well", "shed" and "id" are words and stay."""


@lru_cache(maxsize=2**16)  # people give the same few answers again and again
def normalise_answer(answer: str) -> str:
    """Return an answer in VQA's spelling: lower case, no punctuation, no articles, digits, whole contractions."""
    words = [NUMBERS.get(word, word) for word in _remove_punctuation(_join_lines(answer)).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _join_lines(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _remove_punctuation(text: str) -> str:
    """Remove punctuation as `processPunctuation` of the official code does.

    A mark beside a space is removed, and one between letters becomes a space. Where a comma groups digits anywhere in
    the text (1,000), all marks are removed.
    """
    has_grouped_digits = GROUPED_DIGITS.search(text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        is_beside_space = mark + " " in text or " " + mark in text
        cleaned = cleaned.replace(mark, "" if is_beside_space or has_grouped_digits else " ")
    return PERIOD.sub("", cleaned)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return the accuracy of an answer in [0, 1] by the answers of several people, ten in VQA.

    The accuracy is min(number of people with this answer / 3, 1), averaged over leaving out each person. With ten
    people it is 0.3, 0.6, 0.9 and 1 where one, two, three or more gave the answer. As in the official code nothing is
    normalised where all people agree: the answer must then equal theirs to the letter.
    """
    normalised, normalised_references = _join_lines(answer), [_join_lines(text) for text in references]
    if len(set(normalised_references)) > 1:
        normalised = normalise_answer(normalised)
        normalised_references = [normalise_answer(text) for text in normalised_references]
    num_people, num_equal = len(normalised_references), normalised_references.count(normalised)
    without_equal, without_other = min((num_equal - 1) / 3, 1), min(num_equal / 3, 1)
    return (num_equal * without_equal + (num_people - num_equal) * without_other) / num_people


def gqa_accuracy(answer: str, reference: str) -> float:
    """Return 1 for an answer that equals the reference and 0 for another.

    The answer is compared as it is and in VQA's spelling, in which LAVIS compares generated answers.
    """
    return float(answer.strip() == reference or normalise_answer(answer) == reference)


def mean_accuracy(
    accuracies: Sequence[float], kinds: Sequence[Mapping[str, str]]
) -> dict[str, tuple[float, int]]:
    """Return mean accuracy in percent and number of questions, of all and of each group, by the group's name.

    kinds: for each question its value of each kind, such as {"answer type": "yes/no"}; questions with the same value
    of a kind are a group, called "answer type: yes/no".
    """
    groups: dict[str, list[float]] = {}
    for accuracy, question_kinds in zip(accuracies, kinds, strict=True):
        for kind, value in question_kinds.items():
            groups.setdefault(f"{kind}: {value}", []).append(accuracy)
    all_groups = {"all": accuracies, **dict(sorted(groups.items()))}
    return {name: (100 * sum(group) / len(group), len(group)) for name, group in all_groups.items()}
