"""Build a whole retrieval model in milliseconds: every part is real, small and random.

Its weights are strong enough that different photos and texts have different scores. It has 8 queries of width 32,
three layers of which two read patches, and a ViT of 16 patches and a class token.
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
    """Return a WordPiece tokenizer of twelve words, and of the letters that spell every other word."""
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
    """Return the config of the tiny model.

    vision: the image encoder; None gives a small ViT. changes: fields of the Q-Former's config that differ.
    """
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
    """Return a tiny network with random weights under which the inputs decide the outputs.

    Matrices are scaled so that what they multiply keeps its size.
    """
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
    """Save a tiny network and its tokenizer as a model folder; return the folder."""
    save_checkpoint(folder, tiny_net(config, seed), tiny_tokenizer())
    return folder


def tiny_model(folder: Path, dtype: str = "float32", seed: int = 0) -> RetrievalModel:
    """Save a tiny network in a folder and load it from there on the CPU."""
    return load_model(str(tiny_checkpoint(folder, seed=seed)), device="cpu", dtype=dtype)


def write_pictures(folder: Path, names: Sequence[str], seed: int = 0) -> list[Path]:
    """Write a picture of coloured blocks under each name; return the paths.

    The pictures have different sizes. A seed gives the same pictures each time.
    """
    random = np.random.default_rng(seed)
    paths = []
    for number, name in enumerate(names):
        blocks = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths.append(folder / name)
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        size = (40 + number % 7, 36 + number % 5)
        Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(paths[-1])
    return paths
