"""Compute BLEU, ROUGE-L and CIDEr-D of captions with pure functions of words; the numbers equal coco-caption's.

All scores are in percent, as papers print them: coco-caption's BLEU-4 of 0.397 is 39.7 here, its CIDEr-D of 1.378 is
137.8. A caption is a list of words as `caption_words.split_words` gives them.

Shapes: N photos.
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
MAX_NGRAM = 4
"""Length of the longest n-grams: they have 1 to 4 words."""
BETA = 1.2
"""Weight of recall beside precision in ROUGE-L."""
SIGMA = 6.0
"""Width of the Gaussian with which CIDEr-D lowers the score of a caption of another length."""
TINY, SMALL = 1e-15, 1e-9
"""Numbers that coco-caption adds above and below a fraction, so that nothing is divided by 0."""


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute BLEU-1 to 4, ROUGE-L and CIDEr-D in percent from texts: one caption and its references for each photo.

    The scores are those of the set as a whole: CIDEr-D weighs a word by the number of photos whose references contain
    it, so that a photo scores differently in a part of the set. Raise DataError where candidates and references do not
    fit (see `check_references`).
    """
    check_references(candidates, references)
    candidate_words = [split_words(text) for text in candidates]
    reference_words = [[split_words(text) for text in texts] for texts in references]
    scores = {f"BLEU-{n}": score for n, score in enumerate(bleu(candidate_words, reference_words), start=1)}
    scores["ROUGE-L"] = float(rouge_l(candidate_words, reference_words).mean())
    scores["CIDEr-D"] = float(cider_d(candidate_words, reference_words).mean())
    return scores


def check_references(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    """Raise DataError unless there is a photo, one caption for each photo, and at least one reference for each."""
    if len(candidates) != len(references):
        raise DataError(
            f"There are {len(candidates):,} captions for {len(references):,} photos; give one caption for each photo."
        )
    if not candidates:
        raise DataError("There are no captions to score.")
    if num_bare := sum(not texts for texts in references):
        raise DataError(f"{num_bare:,} of {len(references):,} photos have no references; leave them out.")


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Compute BLEU-1 to BLEU-4 of the whole set in percent (Papineni et al. 2002).

    Clipped n-gram counts and lengths are added up over all photos. The reference length of a photo, for the brevity
    penalty, is the length closest to the caption's among its references, and the shorter one of two as close.
    """
    num_right, num_guessed = [0] * MAX_NGRAM, [0] * MAX_NGRAM
    length = reference_length = 0
    for candidate, photo_references in zip(candidates, references, strict=True):
        allowed: Counter[tuple[str, ...]] = Counter()
        for reference in photo_references:
            allowed |= count_ngrams(reference)
        for ngram, count in count_ngrams(candidate).items():
            num_right[len(ngram) - 1] += min(count, allowed[ngram])
        for n in range(MAX_NGRAM):
            num_guessed[n] += max(0, len(candidate) - n)
        length += len(candidate)
        lengths = [len(reference) for reference in photo_references]
        reference_length += min(lengths, key=lambda other: (abs(other - len(candidate)), other))
    ratio = (length + TINY) / (reference_length + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(MAX_NGRAM):
        product *= (num_right[n] + TINY) / (num_guessed[n] + SMALL)
        scores.append(100 * brevity * product ** (1 / (n + 1)))
    return scores


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """Compute ROUGE-L of each photo, (N,) in percent (Lin 2004).

    The score is the F measure of the longest common subsequence, in which recall weighs 1.2 times as much as precision.
    As in coco-caption, precision and recall are each the best over the references, which may be two different ones, and
    a caption without words counts as one empty word.
    """
    scores = np.zeros(len(candidates))
    for row, (candidate, photo_references) in enumerate(zip(candidates, references, strict=True)):
        words = candidate or [""]
        common = [
            (measure_longest_common(words, reference or [""]), len(reference) or 1)
            for reference in photo_references
        ]
        precision = max(length for length, _ in common) / len(words)
        recall = max(length / reference_length for length, reference_length in common)
        if precision and recall:
            scores[row] = 100 * (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


def measure_longest_common(first: Words, second: Words) -> int:
    """Return the number of words in the longest common subsequence of two captions.

    Each row of the usual table is held as the bits of one number, with a 0 where the length grows (Hyyrö 2004).
    """
    positions: dict[str, int] = {}
    for position, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << position
    all_bits = (1 << len(first)) - 1
    row = all_bits
    for word in second:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & all_bits
    return len(first) - row.bit_count()


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """Compute CIDEr-D of each photo, (N,) in percent, at most 1000 (Vedantam et al. 2015; n 1 to 4, sigma 6, times 10).

    The weight of an n-gram is log(N / number of photos whose references have it). Repeating a word more often than the
    reference does adds nothing, and another length lowers the score. As in coco-caption, lengths are counted in pairs
    of words, and an n-gram that is in no reference weighs as much as one in the references of a single photo. With one
    photo every weight is log 1, and the score is 0.
    """
    reference_counts = [[count_ngrams(text) for text in texts] for texts in references]
    num_photos_with = Counter(chain.from_iterable(set().union(*counts) for counts in reference_counts))
    weights = _Weights(len(candidates), num_photos_with)
    scores = np.zeros(len(candidates))
    for row, (candidate, photo_counts) in enumerate(zip(candidates, reference_counts, strict=True)):
        candidate_vector = _weigh(count_ngrams(candidate), weights)
        similarities = (_compare(candidate_vector, _weigh(counts, weights)) for counts in photo_counts)
        scores[row] = sum(similarities) / len(photo_counts)
    return 100 * 10 * scores / MAX_NGRAM


class _Weights(dict[tuple[str, ...], float]):
    """The weight log(N / number of photos that have it) of each n-gram, computed when it is first asked for."""

    def __init__(self, num_photos: int, num_photos_with: Counter[tuple[str, ...]]):
        super().__init__()
        self.log_num_photos, self.num_photos_with = math.log(max(num_photos, 1)), num_photos_with

    def __missing__(self, ngram: tuple[str, ...]) -> float:
        weight = self[ngram] = self.log_num_photos - math.log(max(1, self.num_photos_with[ngram]))
        return weight


@dataclass(frozen=True)
class _Vector:
    """A caption as weighted n-grams.

    values: count times weight of each n-gram.
    norms: for each n the norm of the values of the n-grams with n words.
    length: the number of pairs of words in the caption.
    """

    values: dict[tuple[str, ...], float]
    norms: list[float]
    length: int


def _weigh(counts: Counts, weights: _Weights) -> _Vector:
    values = {ngram: count * weights[ngram] for ngram, count in counts.items()}
    squares, length = [0.0] * MAX_NGRAM, 0
    for ngram, value in values.items():
        squares[len(ngram) - 1] += value * value
        if len(ngram) == 2:
            length += counts[ngram]
    return _Vector(values, [math.sqrt(square) for square in squares], length)


def _compare(candidate: _Vector, reference: _Vector) -> float:
    """Return the sum over n of the clipped cosines, times the penalty for another length."""
    products = [0.0] * MAX_NGRAM
    for ngram, value in candidate.values.items():
        if reference_value := reference.values.get(ngram):
            products[len(ngram) - 1] += min(value, reference_value) * reference_value
    norms = [first * second for first, second in zip(candidate.norms, reference.norms, strict=True)]
    cosines = sum(product / norm for product, norm in zip(products, norms, strict=True) if norm)
    return cosines * math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))


def count_ngrams(caption: Words) -> Counter[tuple[str, ...]]:
    """Count how often each sequence of 1 to 4 words occurs in a caption."""
    ngrams_by_length = [
        zip(*(caption[start:] for start in range(n)), strict=False) for n in range(1, MAX_NGRAM + 1)
    ]
    return Counter(chain.from_iterable(ngrams_by_length))
