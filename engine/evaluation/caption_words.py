"""The words of a caption as coco-caption counts them: Penn Treebank words, lower case, without punctuation marks.

The official code runs Stanford's PTBTokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`) and then leaves out the
tokens of its list of punctuation. These rules are our own, in one expression, and need no Java. They give Stanford's
words for all but 16 of the 136,310 captions of Flickr30K's training photos (Stanford's run beside them).
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
"""coco-caption's PUNCTUATIONS; its brackets (-LRB- ...) never match the lower-cased tokens, and so stay, here too."""
_WRITTEN = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "½": "1/2",
    "£": "#",
}
_QUOTES = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "--", "…": "...", "\xa0": " "}
)


def split_words(caption: str) -> list[str]:
    """A caption's words, in order; none for an empty one."""
    found = _WORD.findall(html.unescape(caption).translate(_QUOTES).lower())
    found = [_WRITTEN.get(word, word) for word in found if word != '"']
    return [word for word in found if word not in _DROPPED and word.strip(".")]
