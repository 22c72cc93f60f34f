"""A whole model in milliseconds: random weights, strong enough that photos and texts differ, every part real.

8 queries of width 32, three layers of which two read patches, a ViT of 16 patches and a class token.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from engine.blip2.config import Blip2Config, QFormerConfig, VisionConfig
from engine.blip2.retriever import Retriever
from engine.checkpoints.saving import save_checkpoint
from engine.models.loading import load_model
from engine.models.retrieval_model import RetrievalModel

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]")
WORDS = ("a", "red", "green", "blue", "dog", "cat", "snow", "house", "runs", "in", "the", "on")
SIDE = 32


def tiny_tokenizer() -> Tokenizer:
    """Twelve words, and the letters that spell every other one."""
    pieces = [
        *SPECIAL,
        *WORDS,
        *string.ascii_lowercase,
        *(f"##{letter}" for letter in string.ascii_lowercase),
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def tiny_config(vision: VisionConfig | None = None, **changes: Any) -> Blip2Config:
    """changes: of the Q-Former."""
    args = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    qformer = QFormerConfig(
        num_layers=3,
        width=32,
        num_heads=4,
        mlp_width=48,
        num_queries=8,
        vocab_size=tiny_tokenizer().get_vocab_size(),
        max_positions=16,
    )
    return Blip2Config(
        vision or VisionConfig("vit_tiny_patch16_224", SIDE, 32, args),
        replace(qformer, **changes),
        embed_dim=16,
        max_tokens=12,
    )


def tiny_net(config: Blip2Config | None = None, seed: int = 0) -> Retriever:
    """Weights that let what goes in decide what comes out: matrices keep the size of what they turn."""
    net = Retriever(config or tiny_config()).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim >= 2:
                parameter.copy_(noise * (1.5 / parameter[0].numel() ** 0.5))
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise + float(name.endswith("weight")))
    return net


def tiny_checkpoint(folder: Path, config: Blip2Config | None = None, seed: int = 0) -> Path:
    save_checkpoint(folder, tiny_net(config, seed), tiny_tokenizer())
    return folder


def tiny_model(folder: Path, dtype: str = "float32", seed: int = 0) -> RetrievalModel:
    return load_model(str(tiny_checkpoint(folder, seed=seed)), device="cpu", dtype=dtype)


def write_pictures(folder: Path, names: Sequence[str], seed: int = 0) -> list[Path]:
    """A picture of coloured blocks under each name, of changing sizes; the same seed gives the same ones."""
    random = np.random.default_rng(seed)
    paths = []
    for number, name in enumerate(names):
        blocks = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths.append(folder / name)
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        size = (40 + number % 7, 36 + number % 5)
        Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(paths[-1])
    return paths
