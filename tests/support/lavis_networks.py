"""The shapes of the networks that LAVIS' checkpoint files hold, with a few layers each."""

from dataclasses import replace
from pathlib import Path

import torch
from tiny import tiny_tokenizer
from tiny_language import (
    byte_tokenizer,
    language_config,
    random_language,
    spread,
)

from engine.blip2.captioner import Captioner
from engine.blip2.config import CaptionerConfig, QFormerConfig, VisionConfig
from engine.checkpoints.language_folder import describe_language

VOCABULARY = tiny_tokenizer().get_vocab_size()
QFORMER = QFormerConfig(4, 64, 4, 128, 8, vocab_size=VOCABULARY, max_positions=32)
EVA = VisionConfig(
    "eva_giant_patch14_clip_224", 56, 88, {"img_size": 56, "embed_dim": 88, "depth": 3, "num_heads": 4}
)


def is_clip(pattern: str) -> bool:
    return any(word in pattern for word in ("class_emb", "positional", "conv1", "ln_pre", "resblocks"))


def eva_captioner(kind: str) -> Captioner:
    tokenizer = byte_tokenizer(kind)
    about = describe_language(language_config(kind), tokenizer, Path("x"), reads_prompt=kind == "llama")
    if kind == "llama":
        about = replace(about, start_id=about.end_id)
    former = QFORMER if kind == "llama" else replace(QFORMER, vocab_size=30523, max_positions=512)
    net = spread(Captioner(CaptionerConfig(EVA, former, about), torch.nn.Identity()))
    net.language = random_language(kind)
    return net
