"""Captions are split as by Stanford's tokenizer, whose words are written down here and checked where Java is."""

from __future__ import annotations

import shutil

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from engine.evaluation.caption_words import split_words

STANFORD = {
    "A man can't ride; he doesn't know how.": "a man ca n't ride he does n't know how",
    "The dog's owner cannot see the dogs' ball.": "the dog 's owner can not see the dogs ball",
    "She's gonna jump, they've gotta run, gimme that.": "she 's gon na jump they 've got ta run gim me that",
    "Mr. Smith and Dr. Jones, Jr. live in the U.S.": "mr. smith and dr. jones jr. live in the u.s.",
    "They left at 5 p.m. yesterday, etc.": "they left at 5 p.m. yesterday etc.",
    "A 3.5 foot, 1,000 pound bear (brown) on St. Marks St.": (
        "a 3.5 foot 1,000 pound bear -lrb- brown -rrb- on st. marks st."
    ),
    'Two "happy" dogs -- one black/white -- run...': "two happy dogs one black/white run",
    "A man's t-shirt says 'I love NY' on it": "a man 's t-shirt says i love ny on it",
    "It's 50% off at $5.99 & #1!": "it 's 50 % off at $ 5.99 & # 1",
    "a boy,a girl and a dog.two cats": "a boy a girl and a dog.two cats",
    "a rock'n'roll singer at 5 o'clock in the '70s": "a rock 'n' roll singer at 5 o'clock in the '70s",
    'He said: "What?!" ; then left': "he said what ?! then left",
    "A man — in a hat – is sitting…": "a man in a hat is sitting",
    "café naïve “quoted” ‘single’": "café naïve quoted single",
    "1/2 of 3/4 and 5-6 people and/or dogs*": "1/2 of 3/4 and 5-6 people and/or dogs *",
    "I'll we'd you're they'd've shouldn't've": "i 'll we 'd you 're they 'd 've should n't 've",
    "Coca-Cola X-ray mid-air 5-year-old 4x4": "coca-cola x-ray mid-air 5-year-old 4x4",
    "ice cream &amp; cake for .99": "ice cream & cake for .99",
    "Woman wearing #23's jersey at 10:30 am": "woman wearing # 23 's jersey at 10:30 am",
    "AT&T   R&B\tQ&A": "at&t r&b q&a",
    "a . b ? c ! d , e ' ` - ; :": "a b c d e",
    "": "",
}
"""Words of captions as Stanford's tokenizer writes them, CoreNLP 3.4.1 as pycocoevalcap runs it."""


@pytest.mark.parametrize("caption", STANFORD)
def test_the_words_are_those_of_stanfords_tokenizer(caption: str) -> None:
    assert split_words(caption) == STANFORD[caption].split()


@pytest.mark.skipif(shutil.which("java") is None, reason="Stanford's tokenizer needs Java")
def test_stanfords_tokenizer_writes_the_words_of_this_file() -> None:
    captions = {number: [{"caption": caption}] for number, caption in enumerate(STANFORD) if caption}
    tokenized = PTBTokenizer().tokenize(captions)
    assert [" ".join(tokenized[number][0].split()) for number in captions] == [
        words for words in STANFORD.values() if words
    ]
