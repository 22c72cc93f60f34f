"""Right answers to questions about photos, as VQAv2, OK-VQA and GQA count them: pure functions of texts.

Sources. VQA: `vqaEval.py` of the official GT-Vision-Lab/VQA (also OK-VQA's evaluation); the accuracy is Antol et al.
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
"""`manualMap`: words that become digits. "None" is 0."""
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""`punct`. An apostrophe, a colon and a period are not in it."""
GROUPED = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
"""`periodStrip`: what is meant to spare 3.5 spares every period before a digit, and no other."""

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


def _written_without(words: str) -> dict[str, str]:
    """Each word by its spellings with one apostrophe left out."""
    spellings = {}
    for word in words.split():
        for place, letter in enumerate(word):
            if letter == "'":
                spellings[word[:place] + word[place + 1 :]] = word
    return spellings


CONTRACTIONS = {**_written_without(_ONE_APOSTROPHE + _MORE_APOSTROPHES), "somebody'd": "somebodyd"}
"""`contractions`: an apostrophe that was left out comes back; "ill", "well", "shed", "id" are words and stay."""


@lru_cache(maxsize=2**16)  # people give the same few answers again and again
def normalise_answer(answer: str) -> str:
    """An answer in VQA's spelling: lower case, no punctuation, no articles, digits, whole contractions."""
    words = [NUMBERS.get(word, word) for word in _without_punctuation(_one_line(answer)).lower().split()]
    kept = [word for word in words if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """`processPunctuation`: a mark beside a space goes, between letters it becomes a space; all go where a comma
    groups digits (1,000)."""
    grouped = GROUPED.search(text) is not None
    written = text
    for mark in PUNCTUATION:
        beside_space = mark + " " in text or " " + mark in text
        written = written.replace(mark, "" if beside_space or grouped else " ")
    return PERIOD.sub("", written)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Share in [0, 1]: min(people who say so / 3, 1), averaged over leaving each person's answer out.

    With ten people 0.3, 0.6, 0.9, 1 for one, two, three, more who say so. As in the official code nothing is normalised
    where all agree: the answer must then be theirs to the letter.
    """
    given, theirs = _one_line(answer), [_one_line(one) for one in references]
    if len(set(theirs)) > 1:
        given, theirs = normalise_answer(given), [normalise_answer(one) for one in theirs]
    same = theirs.count(given)
    without_one, without_other = min((same - 1) / 3, 1), min(same / 3, 1)
    return (same * without_one + (len(theirs) - same) * without_other) / len(theirs)


def gqa_accuracy(answer: str, reference: str) -> float:
    """1 or 0: the same text, as it is or in VQA's spelling (LAVIS writes generated answers so before it compares)."""
    return float(answer.strip() == reference or normalise_answer(answer) == reference)


def mean_accuracy(
    accuracies: Sequence[float], kinds: Sequence[Mapping[str, str]]
) -> dict[str, tuple[float, int]]:
    """Percent and number of questions: of all, and of each value of each kind ("answer type: yes/no"), by name."""
    groups: dict[str, list[float]] = {}
    for accuracy, own in zip(accuracies, kinds, strict=True):
        for kind, value in own.items():
            groups.setdefault(f"{kind}: {value}", []).append(accuracy)
    parts = {"all": accuracies, **dict(sorted(groups.items()))}
    return {name: (100 * sum(part) / len(part), len(part)) for name, part in parts.items()}
