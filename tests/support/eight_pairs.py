"""Eight one-coloured pictures with captions, and small networks of stages 1 and 2 that learn them by heart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shard_writing import make_png, write_shard
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


def caption_tokenizer() -> Tokenizer:
    """Return a WordPiece tokenizer of 100 entries that is trained on the captions."""
    return train_tokenizer((text for captions in CAPTIONS for text in captions), 100)


def stage1_model_config() -> Blip2Config:
    """Return the config of the small network of stage 1."""
    qformer = QFormerConfig(
        num_layers=2,
        width=32,
        num_heads=2,
        mlp_width=64,
        num_queries=4,
        vocab_size=caption_tokenizer().get_vocab_size(),
        max_positions=16,
        dropout=0.0,
    )
    return Blip2Config(VISION, qformer, embed_dim=16, max_tokens=12)


def stage1_config(**changes: object) -> Stage1Config:
    """Return the settings of a run of stage 1 over the eight pairs. changes: settings that differ."""
    optim = OptimConfig(steps=300, batch=8, lr=5e-3, warmup=10, weight_decay=0.0, log_every=50)
    sets = (SourceConfig("s-*.tar"),)
    config = Stage1Config(stage1_model_config(), sets, optim, views=1, smallest_crop=0.6, start="first")
    return replace(config, **changes)


def make_eight_pairs(
    config: Stage1Config,
) -> tuple[Retriever, TextTokenizer, torch.Tensor, list[CaptionedPicture]]:
    """Return a network, its tokenizer, the patches of eight random pictures, and the samples with the captions."""
    torch.manual_seed(0)
    net = Retriever(config.model)
    pictures = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    samples = [
        CaptionedPicture(colour, b"", captions) for colour, captions in zip(COLOURS, CAPTIONS, strict=True)
    ]
    return net, TextTokenizer(caption_tokenizer(), 12), encode_views(net, pictures, config), samples


def make_batches(
    patches: torch.Tensor, samples: list[CaptionedPicture], config: Stage1Config
) -> EncodedViews:
    """Return the batches of a run of stage 1 on patches that are computed once."""
    return EncodedViews(patches, samples, config.optim)


def write_colour_shard(path: Path) -> None:
    """Write the eight pictures and their captions as a tar shard."""
    members = {}
    for colour, captions in zip(COLOURS, CAPTIONS, strict=True):
        members[f"{colour}.png"] = make_png(colour, (40, 32))
        members[f"{colour}.json"] = json.dumps({"captions": captions}).encode()
    write_shard(path, members)


def word_tokenizer(kind: str) -> Tokenizer:
    """Return a tokenizer of whole words for a kind of language model, so that a caption is few tokens.

    kind: opt, t5 or llama; each puts other special tokens around a text.
    """
    special, around = SPECIAL[kind]
    words = [*special, "a", "of", "photo", "the", "wall", "is", *COLOURS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    tokens = [(token, special.index(token)) for token in special if token in around.split()]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=tokens)
    return tokenizer


def language_model(kind: str) -> Any:
    """Return a random language model of transformers with the vocabulary of `word_tokenizer`."""
    config = language_config(kind)
    config.vocab_size = word_tokenizer(kind).get_vocab_size()
    automatic = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    return randomise_weights(untie(automatic.from_config(config)), seed=1)


def stage1_net() -> tuple[Retriever, Tokenizer]:
    """Return a small random network of stage 1 and its tokenizer."""
    torch.manual_seed(0)
    return Retriever(stage1_model_config()), caption_tokenizer()


def put_before_language_model(net: Retriever, language: Any, settings: LanguageConfig) -> Captioner:
    """Put the modules of a stage-1 network before a language model, with a new projection, as stage 2 starts.

    The network loses its text branch unless the Q-Former reads the prompt.

    settings: the config that belongs to `language`, a model of transformers.
    """
    config = CaptionerConfig(net.config.vision, net.config.qformer, settings, net.config.vision_norm_eps)
    with without_storage():
        captioner = Captioner(config, nn.Identity())
    captioner.vision, captioner.vision_norm, captioner.qformer = net.vision, net.vision_norm, net.qformer
    if not settings.reads_prompt:
        captioner.qformer.drop_text()
    captioner.projection = nn.Linear(config.qformer.width, settings.width)
    captioner.language = language
    return captioner
