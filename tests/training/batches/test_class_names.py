"""A thousand classes go by their names and by broader words, as the draws of a step decide."""

from __future__ import annotations

import torch

from training.batches import class_names
from training.batches.class_names import BROADER, ClassNames, word_name


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_names_are_imagenets_in_their_order() -> None:
    names = ClassNames()
    assert names.names[0] == ["tench", "Tinca tinca"] and names.names[497] == ["church", "church building"]
    assert len(names.names) == 1000 and all(all(texts) for texts in names.names)
    assert names.broader.keys() == BROADER.keys()
    assert len(names.broader["dog"]) == 118 and names.broader["church" if "church" in BROADER else "cat"]
    assert names.broader["cat"] == [281, 282, 283, 284, 285] and len(names.broader["animal"]) == 398


def test_every_class_has_one_text_and_broader_words_share_it() -> None:
    names = ClassNames()
    drawn = [names.draw_texts(draws(seed)) for seed in range(20)]
    for texts, numbers in drawn:
        assert numbers.shape == (1000,) and numbers.unique().tolist() == list(range(len(texts)))
        shared = numbers.bincount().gt(1).nonzero()[:, 0].tolist()
        for number in shared:
            classes = (numbers == number).nonzero()[:, 0].tolist()
            words = [word for word, members in names.broader.items() if sorted(members) == classes]
            assert any(word in texts[number] for word in words)
    assert sum(bool((numbers.bincount() > 1).any()) for _, numbers in drawn) == 20
    assert len({text for texts, _ in drawn for text in texts if "tench" in text or "Tinca" in text}) > 5


def test_equal_draws_give_equal_texts() -> None:
    names = ClassNames()
    first, again, other = (names.draw_texts(draws(seed)) for seed in (3, 3, 4))
    assert first[0] == again[0] and torch.equal(first[1], again[1]) and first[0] != other[0]


def test_articles() -> None:
    assert word_name("espresso", "a photo of {a}") == "a photo of an espresso"
    assert word_name("church", "{a} in a photo") == "a church in a photo"
    assert word_name("church", "a picture of the {label}") == "a picture of the church"
    assert all("{" in wording for wording in class_names.WORDINGS)
