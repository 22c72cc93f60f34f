"""Small captioners, pictures and settings that tests of fine-tuning share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from eight_pairs import COLOURS, language_model, put_before_language_model, stage1_net, word_tokenizer
from shard_writing import make_png

from engine.blip2.captioner import Captioner
from engine.blip2.generation import GenerationOptions
from engine.checkpoints.language_folder import read_language_config
from engine.checkpoints.saving import save_captioner, save_checkpoint
from engine.datasets.captioned_sets import SourceConfig
from engine.datasets.question_sets import QuestionConfig
from engine.models.caption_model import CaptionModel
from engine.pictures.opening import open_picture
from engine.pictures.squares import squash
from training.loop.optimizer import OptimConfig
from training.stages.finetuning import CaptionConfig, VqaConfig

GREEDY = GenerationOptions(max_new_tokens=8)
OPTIM = OptimConfig(
    steps=4, batch=8, lr=3e-3, warmup=5, betas=(0.9, 0.999), weight_decay=0.0, clip=1.0, log_every=1
)


def save_stage2_model(folder: Path, kind: str = "opt") -> Captioner:
    """Save a captioner of stage 2, whose Q-Former has no text branch, and return it. kind: opt or t5."""
    retriever, _ = stage1_net()
    language = language_model(kind)
    net = put_before_language_model(
        retriever, language, read_language_config(language.config, word_tokenizer(kind), Path("x"))
    )
    save_captioner(folder, net, word_tokenizer(kind))
    return net


def caption_config(**changes: Any) -> CaptionConfig:
    """Return the settings of a short fine-tuning on captions. changes: settings that differ."""
    return replace(CaptionConfig((SourceConfig("captions.json"),), OPTIM, "opt", workers=2), **changes)


def vqa_config(**changes: Any) -> VqaConfig:
    """Return the settings of a short fine-tuning on questions. changes: settings that differ."""
    config = VqaConfig(
        (QuestionConfig("questions.json"),), OPTIM, "opt", reads_prompt=True, text_start="first"
    )
    return replace(config, **{"workers": 2, "prompts": ("{}",)} | changes)


def read_squares(data: Path, model: CaptionModel, colours: tuple[str, ...] = COLOURS) -> np.ndarray:
    """Return the pictures of these colours in `data` as the squares (N, size, size, 3) that the model reads."""
    size = model.image_size
    return np.stack([squash(open_picture(data / f"{colour}.png"), size) for colour in colours])


LEARNING_OPTIM = replace(OPTIM, steps=100, lr=5e-3, log_every=20)


def write_finetuning_data(folder: Path) -> Path:
    """Write what fine-tuning reads into `folder`, and return it.

    Eight one-coloured pictures; captions.json; questions.json; a model of stage 1 in `first`; captioners with two
    kinds of language model in `opt` and `t5`.
    """
    for colour in COLOURS:
        (folder / f"{colour}.png").write_bytes(make_png(colour, (40, 40)))
    captions = [{"image": f"{colour}.png", "caption": f"the wall is {colour}"} for colour in COLOURS]
    (folder / "captions.json").write_text(json.dumps(captions))
    questions = [
        {"image": f"{colour}.png", "question": question, "answer": answer}
        for colour in COLOURS[:4]
        for question, answer in (("the wall is?", [colour] * 3), ("a photo of?", "wall"))
    ]
    (folder / "questions.json").write_text(json.dumps(questions))
    retriever, words = stage1_net()
    save_checkpoint(folder / "first", retriever, words)
    for kind in ("opt", "t5"):
        save_stage2_model(folder / kind, kind)
    return folder
