"""Hold the options with which a text is written: beams, sampling, lengths, penalties, and two presets of LAVIS."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationOptions:
    """Options with which a text is written. Raises ValueError for a value out of range.

    max_new_tokens, min_new_tokens: length of the text; its end counts, the prompt does not. num_beams: width of the
    beam search; 1 takes the likeliest token each time. top_p: draw each token from the likeliest ones that make up this
    share of the probability (nucleus sampling, arXiv:1904.09751), at `temperature`; None draws nothing. length_penalty:
    a beam's score is its log-probability divided by its length to this power; below 0 short texts win.
    repetition_penalty: above 1, a token that was written is less likely to come again; None takes the checkpoint's
    penalty. seed: the seed of the draws. num_samples: number of texts that are drawn for each photo and prompt.
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
                f"min_new_tokens is {self.min_new_tokens} and max_new_tokens is {self.max_new_tokens}; give "
                "0 <= min_new_tokens <= max_new_tokens, and max_new_tokens of at least 1."
            )
        if self.num_beams < 1 or (self.top_p is not None and self.num_beams > 1):
            raise ValueError(
                f"num_beams is {self.num_beams} and top_p is {self.top_p}; give at least one beam, and exactly one "
                "where tokens are drawn (top_p)."
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.num_samples < 1 or (self.num_samples > 1 and self.top_p is None):
            raise ValueError(
                f"num_samples is {self.num_samples} and top_p is {self.top_p}; give at least one sample, and exactly "
                "one where no tokens are drawn (top_p is None)."
            )
        if self.temperature <= 0 or (self.repetition_penalty is not None and self.repetition_penalty <= 0):
            raise ValueError(
                f"temperature is {self.temperature} and repetition_penalty is {self.repetition_penalty}; both must be "
                "above 0."
            )


CAPTION = GenerationOptions(max_new_tokens=30, min_new_tokens=8, num_beams=5, repetition_penalty=None)
"""The options with which LAVIS writes COCO captions."""
ANSWER = GenerationOptions(max_new_tokens=10, num_beams=5, length_penalty=-1.0)
"""The options with which LAVIS answers questions zero-shot (VQA)."""
