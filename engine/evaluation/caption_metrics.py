"""BLEU, ROUGE-L and CIDEr-D of captions: pure functions of words, equal to coco-caption's numbers.

All in percent, as papers print them: coco-caption's BLEU-4 of 0.397 is 39.7 here, its CIDEr-D of 1.378 is 137.8.
Word = one of `caption_words.words`; a caption is a list of them. N photos.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from engine.errors import DataError
from engine.evaluation.caption_words import split_words

Words = Sequence[str]
Counts = Mapping[tuple[str, ...], int]
LONGEST = 4
"""n-grams have 1 to 4 words."""
BETA = 1.2
SIGMA = 6.0
TINY, SMALL = 1e-15, 1e-9
"""coco-caption adds them above and below a fraction, so that nothing is divided by 0."""


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to 4, ROUGE-L and CIDEr-D in percent, of one caption and its references for each photo, as written.

    The set as a whole counts: CIDEr-D weighs words by how many of these photos' references have them, so that the
    score of a part of a set is another one. Raises DataError where the two do not fit (see `check_references`).
    """
    check_references(candidates, references)
    ours = [split_words(text) for text in candidates]
    theirs = [[split_words(text) for text in texts] for texts in references]
    found = {f"BLEU-{n}": score for n, score in enumerate(bleu(ours, theirs), start=1)}
    found["ROUGE-L"] = float(rouge_l(ours, theirs).mean())
    found["CIDEr-D"] = float(cider_d(ours, theirs).mean())
    return found


def check_references(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    """Raises DataError: no photo, a photo without references, more of the one than of the other."""
    if len(candidates) != len(references):
        raise DataError(
            f"There are {len(candidates):,} captions for {len(references):,} photos; one each is scored."
        )
    if not candidates:
        raise DataError("There are no captions to score.")
    if bare := sum(not texts for texts in references):
        raise DataError(f"{bare:,} of {len(references):,} photos have no references; leave them out.")


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of the whole set in percent (Papineni et al. 2002).

    Clipped n-gram counts and lengths are added up over all photos; the brevity penalty's reference length is, of each
    photo, the one closest to the caption's, the shorter of two as close.
    """
    right, guessed = [0] * LONGEST, [0] * LONGEST
    length = reference_length = 0
    for candidate, own in zip(candidates, references, strict=True):
        most: Counter[tuple[str, ...]] = Counter()
        for reference in own:
            most |= ngrams(reference)
        for ngram, count in ngrams(candidate).items():
            right[len(ngram) - 1] += min(count, most[ngram])
        for n in range(LONGEST):
            guessed[n] += max(0, len(candidate) - n)
        length += len(candidate)
        reference_length += min((abs(len(one) - len(candidate)), len(one)) for one in own)[1]
    ratio = (length + TINY) / (reference_length + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(LONGEST):
        product *= (right[n] + TINY) / (guessed[n] + SMALL)
        scores.append(100 * brevity * product ** (1 / (n + 1)))
    return scores


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """(N,) percent: F of the longest common subsequence, recall weighing 1.2 times as much (Lin 2004).

    As in coco-caption, precision and recall are each the best over the references, which need not be the same one,
    and a caption without words counts as one empty word.
    """
    scores = np.zeros(len(candidates))
    for row, (candidate, own) in enumerate(zip(candidates, references, strict=True)):
        ours = candidate or [""]
        common = [(longest_common(ours, one or [""]), len(one) or 1) for one in own]
        precision = max(length for length, _ in common) / len(ours)
        recall = max(length / size for length, size in common)
        if precision and recall:
            scores[row] = 100 * (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


def longest_common(a: Words, b: Words) -> int:
    """How many words the longest common subsequence has.

    A row of the usual table at a time, as the bits of one number: a 0 where the length grows (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        both = row & places.get(word, 0)
        row = ((row + both) | (row - both)) & full
    return len(a) - row.bit_count()


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """(N,) percent, 1000 at most: CIDEr-D (Vedantam et al. 2015; n 1 to 4, sigma 6, times 10).

    An n-gram's weight is log(N / photos whose references have it). A word that comes again beyond the reference's count
    brings nothing, and another length costs. As in coco-caption, lengths are counted in pairs of words, and an n-gram
    of no reference weighs like one of a single photo. With one photo every weight is log 1: the score is 0.
    """
    counted = [[ngrams(one) for one in own] for own in references]
    frequency = Counter(chain.from_iterable(set().union(*own) for own in counted))
    weight_of = _Weights(len(candidates), frequency)
    scores = np.zeros(len(candidates))
    for row, (candidate, own) in enumerate(zip(candidates, counted, strict=True)):
        ours = _vector(ngrams(candidate), weight_of)
        scores[row] = sum(_similarity(ours, _vector(one, weight_of)) for one in own) / len(own)
    return 100 * 10 * scores / LONGEST


class _Weights(dict[tuple[str, ...], float]):
    """n-gram -> log(N / photos that have it), made when it is first asked for."""

    def __init__(self, num_photos: int, frequency: Counter[tuple[str, ...]]):
        super().__init__()
        self.log_photos, self.frequency = math.log(max(num_photos, 1)), frequency

    def __missing__(self, ngram: tuple[str, ...]) -> float:
        weight = self[ngram] = self.log_photos - math.log(max(1, self.frequency[ngram]))
        return weight


@dataclass(frozen=True)
class _Vector:
    """values: by n-gram. norms: of the parts with n-grams of each length. length: in pairs of words."""

    values: dict[tuple[str, ...], float]
    norms: list[float]
    length: int


def _vector(counts: Counts, weight_of: _Weights) -> _Vector:
    values = {ngram: count * weight_of[ngram] for ngram, count in counts.items()}
    squares, length = [0.0] * LONGEST, 0
    for ngram, value in values.items():
        squares[len(ngram) - 1] += value * value
        if len(ngram) == 2:
            length += counts[ngram]
    return _Vector(values, [math.sqrt(square) for square in squares], length)


def _similarity(ours: _Vector, theirs: _Vector) -> float:
    """The sum over n of the clipped cosine, times the penalty for another length."""
    products = [0.0] * LONGEST
    for ngram, value in ours.values.items():
        if other := theirs.values.get(ngram):
            products[len(ngram) - 1] += min(value, other) * other
    norms = [mine * other for mine, other in zip(ours.norms, theirs.norms, strict=True)]
    cosines = sum(product / norm for product, norm in zip(products, norms, strict=True) if norm)
    return cosines * math.exp(-((ours.length - theirs.length) ** 2) / (2 * SIGMA**2))


def ngrams(caption: Words) -> Counter[tuple[str, ...]]:
    """How often each row of 1 to 4 words occurs."""
    parts = [zip(*(caption[start:] for start in range(n)), strict=False) for n in range(1, LONGEST + 1)]
    return Counter(chain.from_iterable(parts))
