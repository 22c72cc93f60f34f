"""Options of writing that are out of range are refused."""

from __future__ import annotations

from typing import Any

import pytest

from engine.blip2.generation import GenerationOptions


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0}, {"min_new_tokens": 31}, {"min_new_tokens": -1}, {"num_beams": 0},
        {"top_p": 0.9, "num_beams": 2}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": 0.0},
        {"repetition_penalty": 0.0}, {"num_samples": 0, "top_p": 0.9}, {"num_samples": 2},
    ],
)  # fmt: skip
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GenerationOptions(**wrong)
