"""How a text is written (beams, sampling, lengths, penalties), and the two presets: CAPTION and ANSWER are the settings
with which LAVIS writes COCO captions and answers questions.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationOptions:
    """How a text is written. Raises ValueError for a value out of range.

    max_new_tokens, min_new_tokens: of the text, prompt not counted, its end counted. num_beams: 1 = the likeliest token
    each time. top_p: draw each token from the likeliest that make up this share of the probability (nucleus sampling,
    arXiv:1904.09751), at `temperature`; None = no chance. length_penalty: a beam's score is its log-probability divided
    by its length to this power: below 0 short texts win. repetition_penalty: above 1, what was written is less likely
    to come again; None = as the checkpoint says. seed: of the draws. num_samples: texts that are drawn for each photo
    and prompt.
    """

    max_new_tokens: int = 30
    min_new_tokens: int = 0
    num_beams: int = 1
    top_p: float | None = None
    temperature: float = 1.0
    length_penalty: float = 1.0
    repetition_penalty: float | None = 1.0
    seed: int = 0
    num_samples: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, max_new_tokens {self.max_new_tokens}; it takes "
                "0 <= min_new_tokens <= max_new_tokens and at least one new token"
            )
        if self.num_beams < 1 or (self.top_p is not None and self.num_beams > 1):
            raise ValueError(
                f"num_beams is {self.num_beams}, top_p {self.top_p}; it takes at least one beam, and one alone where "
                "tokens are drawn (top_p)"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.num_samples < 1 or (self.num_samples > 1 and self.top_p is None):
            raise ValueError(
                f"num_samples is {self.num_samples}, top_p {self.top_p}; it takes at least one sample, and one alone "
                "where nothing is left to chance (top_p)"
            )
        if self.temperature <= 0 or (self.repetition_penalty is not None and self.repetition_penalty <= 0):
            raise ValueError(
                f"temperature is {self.temperature}, repetition_penalty {self.repetition_penalty}; both must be above 0"
            )


CAPTION = GenerationOptions(max_new_tokens=30, min_new_tokens=8, num_beams=5, repetition_penalty=None)
"""LAVIS' for COCO captions."""
ANSWER = GenerationOptions(max_new_tokens=10, num_beams=5, length_penalty=-1.0)
"""LAVIS' for zero-shot VQA."""
