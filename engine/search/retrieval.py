"""Find the candidates for a question: photos by ITC, and photos whose captions are near to the text.

Shapes: N photos, Q queries, E embedding.
"""

from __future__ import annotations

CAPTIONED_SHARE = 4
"""One caption candidate for so many others: on Flickr8k's dev photos 32 beside 128 are 10 new photos a question; the
right one is among the candidates in 85.3 instead of 83.1 of 100 questions with mini's own captions, in 95.8 with
people's."""
