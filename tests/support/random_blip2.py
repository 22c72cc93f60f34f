"""Build and save random BLIP-2 networks of Hugging Face transformers, a few thousand weights each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import tiny_tokenizer
from tiny_language import byte_tokenizer, language_config, randomise_weights, untie
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    OPTConfig,
)

from engine.blip2.wordpiece import TextTokenizer

SIZE, PATCH, V, D, Q, E = 56, 14, 88, 64, 8, 24
MLP_WIDTH = int(V * 4.3637)  # EVA's ratio; timm takes it from the name of the architecture.
VOCABULARY = tiny_tokenizer().get_vocab_size()
TEXTS = ("a red dog runs in the snow", "cat", "the blue house")
ATOL = 2e-5
"""Largest distance of an output from transformers' output in float32."""


def random_retriever() -> Blip2ForImageTextRetrieval:
    """Return a small retrieval model of transformers, whose weights give different photos different scores."""
    qformer = Blip2QFormerConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        encoder_hidden_size=V,
        use_qformer_text_input=True,
    )
    vision = Blip2VisionConfig(
        hidden_size=V,
        intermediate_size=MLP_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
    )
    text = OPTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, ffn_dim=16, vocab_size=20)
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=Q,
        image_text_hidden_size=E,
    )
    theirs = Blip2ForImageTextRetrieval(config).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if parameter.ndim == 1:
            parameter.copy_(0.1 * noise + float(name.endswith("weight")))
            if name.endswith("qkv.bias"):
                parameter.view(3, -1)[1] = 0
        else:
            parameter.copy_(noise * (1.5 / parameter[0].numel() ** 0.5))
    return theirs


def save_retriever_folder(theirs: Blip2ForImageTextRetrieval, folder: Path, layout: str = "one file") -> None:
    """Save a retrieval model as people publish it: its config, its weights and tokenizer.json.

    layout: of the weights: "one file" or "shards" of safetensors, or "bin", a pickled file.
    """
    theirs.save_pretrained(folder, max_shard_size="300KB" if layout == "shards" else "5GB")
    assert (len(list(folder.glob("*.safetensors"))) > 2) == (layout == "shards")
    if layout == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))


def make_inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels, token ids and mask of `batch` photos and texts, at most three; with three, two are padded."""
    pixels = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))
    ids, mask, _ = TextTokenizer(tiny_tokenizer(), 16)(TEXTS[:batch])
    assert batch == 1 or not mask.all()
    return pixels, ids, mask


def random_captioner(kind: str) -> Any:
    """Return a small captioner of transformers. kind: opt, t5 or llama, whose Q-Former reads the prompt."""
    text = language_config(kind)
    vision = {
        "hidden_size": V,
        "intermediate_size": MLP_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
        "layer_norm_eps": 1e-6,
    }
    qformer = {
        "vocab_size": VOCABULARY,
        "hidden_size": D,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 24,
        "encoder_hidden_size": V,
    }
    options = {"text_config": text, "num_query_tokens": Q, "image_token_index": text.vocab_size - 1}
    torch.manual_seed(0)
    if kind == "llama":
        config = InstructBlipConfig(
            vision_config=InstructBlipVisionConfig(**vision),
            qformer_config=InstructBlipQFormerConfig(**qformer),
            **options,
        )
        return randomise_weights(InstructBlipForConditionalGeneration(config))
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**vision), qformer_config=Blip2QFormerConfig(**qformer), **options
    )
    theirs = Blip2ForConditionalGeneration(config)
    untie(theirs.language_model)
    return randomise_weights(theirs)


def save_captioner_folder(theirs: Any, kind: str, folder: Path) -> None:
    """Save a captioner as people publish it: its config, weights and tokenizers."""
    theirs.save_pretrained(folder)
    byte_tokenizer(kind).save(str(folder / "tokenizer.json"))
    if kind == "llama":
        (folder / "qformer_tokenizer").mkdir()
        tiny_tokenizer().save(str(folder / "qformer_tokenizer" / "tokenizer.json"))
