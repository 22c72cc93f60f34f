"""List all recipes: by what they train, and by the name that `qseek train --recipe` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from training.recipes import blip2_recipes, language_recipes
from training.recipes.mini_recipes import (
    mini2_stage1,
    mini_again,
    mini_capfilt,
    mini_capfilt_captioned,
    mini_capfilt_labelled,
    mini_captioner,
    mini_captions,
    mini_encoder,
    mini_encoder_whole,
    mini_itc,
    mini_language,
    mini_retrieval,
    mini_stage1,
    mini_text,
    mini_tuned,
    mini_vqa,
)
from training.stages.stage1_config import Stage1Config
from training.stages.stage2_config import Stage2Config

DISTILL = {"mini-encoder": mini_encoder, "mini-encoder-whole": mini_encoder_whole}
TEXT = {"mini-text": mini_text}
LANGUAGE = {"mini-language": mini_language}
STAGE1: dict[str, Callable[[], Stage1Config]] = {
    "mini": mini_stage1,
    "mini2": mini2_stage1,
    "mini-tuned": mini_tuned,
    "mini-itc": mini_itc,
    "mini-again": mini_again,
    **blip2_recipes.STAGE1,
}
RETRIEVAL = {"mini": mini_retrieval, **blip2_recipes.RETRIEVAL}
STAGE2: dict[str, Callable[[], Stage2Config]] = {
    "mini-captioner": mini_captioner,
    **language_recipes.STAGE2,
}
CAPTION = {"mini-captions": mini_captions, **language_recipes.CAPTION}
VQA = {"mini-vqa": mini_vqa, **language_recipes.VQA}
CAPFILT = {
    "mini-capfilt": mini_capfilt,
    "mini-capfilt-labelled": mini_capfilt_labelled,
    "mini-capfilt-captioned": mini_capfilt_captioned,
}
BY_KIND: dict[str, Mapping[str, Callable[[], object]]] = {
    "distill": DISTILL,
    "text": TEXT,
    "language": LANGUAGE,
    "stage1": STAGE1,
    "stage2": STAGE2,
    "retrieval": RETRIEVAL,
    "caption": CAPTION,
    "vqa": VQA,
    "capfilt": CAPFILT,
}
"""Maps each kind of training that `qseek train` knows to its recipes."""
