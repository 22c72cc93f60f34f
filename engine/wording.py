"""Word the parts of messages that all rooms share, so that each is written in one way."""

from __future__ import annotations


def count_text(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as "1 photo" or "1,000 photos". plural: the noun's plural unless it adds
    an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
