"""Eight one-coloured pictures with captions, and the small networks of stages 1 and 2 that learn them by heart."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_language import SPECIAL, language_config, randomise_weights, untie
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from engine.blip2.captioner import Captioner
from engine.blip2.config import Blip2Config, CaptionerConfig, LanguageConfig, QFormerConfig, VisionConfig
from engine.blip2.retriever import Retriever
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.filling import without_storage
from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.captioned_sets import SourceConfig
from training.batches.encoded_views import EncodedViews, encode_views
from training.loop.optimizer import OptimConfig
from training.stages.stage1_config import Stage1Config
from training.stages.text_half import train_tokenizer

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple", "orange")
CAPTIONS = [(f"a {colour} wall", f"the wall is {colour}") for colour in COLOURS]
VISION = VisionConfig(
    "test_vit", 32, 64, {"img_size": 32}, class_token=True, final_norm=True, mean=(0.5,) * 3, std=(0.5,) * 3
)


def stage1_config(**changes: object) -> Stage1Config:
    words = train_tokenizer((text for group in CAPTIONS for text in group), 100)
    qformer = QFormerConfig(
        num_layers=2, width=32, num_heads=2, mlp_width=64, num_queries=4, vocab_size=words.get_vocab_size(),
        max_positions=16, dropout=0.0,
    )  # fmt: skip
    model = Blip2Config(VISION, qformer, embed_dim=16, max_tokens=12)
    optim = OptimConfig(steps=300, batch=8, lr=5e-3, warmup=10, weight_decay=0.0, log_every=50)
    made = Stage1Config(model, (SourceConfig("s-*.tar"),), optim, views=1, smallest_crop=0.6, start="first")
    return replace(made, **changes)


def make_eight_pairs(
    chosen: Stage1Config,
) -> tuple[Retriever, TextTokenizer, torch.Tensor, list[CaptionedPicture]]:
    torch.manual_seed(0)
    net = Retriever(chosen.model)
    words = train_tokenizer((text for group in CAPTIONS for text in group), 100)
    pictures = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    samples = [CaptionedPicture(c, b"", texts) for c, texts in zip(COLOURS, CAPTIONS, strict=True)]
    return net, TextTokenizer(words, 12), encode_views(net, pictures, chosen), samples


def make_batches(
    patches: torch.Tensor, samples: list[CaptionedPicture], chosen: Stage1Config
) -> EncodedViews:
    return EncodedViews(patches, samples, chosen.optim)


def write_colour_shard(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for colour, texts in zip(COLOURS, CAPTIONS, strict=True):
            file = io.BytesIO()
            Image.new("RGB", (40, 32), colour).save(file, "PNG")
            facts = json.dumps({"captions": texts}).encode()
            for name, content in ((f"{colour}.png", file.getvalue()), (f"{colour}.json", facts)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def word_tokenizer(kind: str) -> Tokenizer:
    """Whole words, so that eight captions are few tokens."""
    special, around = SPECIAL[kind]
    words = [*special, "a", "of", "photo", "the", "wall", "is", *COLOURS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    tokens = [(token, special.index(token)) for token in special if token in around.split()]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=tokens)
    return tokenizer


def language_model(kind: str) -> Any:
    config = language_config(kind)
    config.vocab_size = word_tokenizer(kind).get_vocab_size()
    automatic = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    return randomise_weights(untie(automatic.from_config(config)), seed=1)


def stage1_net() -> tuple[Retriever, Tokenizer]:
    words = train_tokenizer((text for group in CAPTIONS for text in group), 100)
    qformer = QFormerConfig(
        num_layers=2, width=32, num_heads=2, mlp_width=64, num_queries=4, vocab_size=words.get_vocab_size(),
        max_positions=16, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return Retriever(Blip2Config(VISION, qformer, embed_dim=16, max_tokens=12)), words


def put_before_language_model(net: Retriever, language: Any, about: LanguageConfig) -> Captioner:
    """Put the modules of a stage-1 network before a language model, with a new projection, as stage 2 starts.

    The network loses its text branch unless the Q-Former reads the prompt.
    """
    config = CaptionerConfig(net.config.vision, net.config.qformer, about, net.config.vision_norm_eps)
    with without_storage():
        captioner = Captioner(config, nn.Identity())
    captioner.vision, captioner.vision_norm, captioner.qformer = net.vision, net.vision_norm, net.qformer
    if not about.reads_prompt:
        captioner.qformer.drop_text()
    captioner.projection = nn.Linear(config.qformer.width, about.width)
    captioner.language = language
    return captioner
