"""Build small networks of the shapes that LAVIS' checkpoints have, and write them as LAVIS writes its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_tokenizer
from tiny_language import byte_tokenizer, language_config, random_language, randomise_weights
from torch import Tensor

from engine.blip2.captioner import Captioner
from engine.blip2.config import Blip2Config, CaptionerConfig, QFormerConfig, VisionConfig
from engine.blip2.retriever import Retriever
from engine.checkpoints.key_names import LAVIS, LAVIS_CAPTIONER, to_their_name
from engine.checkpoints.language_folder import read_language_config

VOCABULARY = tiny_tokenizer().get_vocab_size()
QFORMER = QFormerConfig(4, 64, 4, 128, 8, vocab_size=VOCABULARY, max_positions=32)
EVA = VisionConfig(
    "eva_giant_patch14_clip_224", 56, 88, {"img_size": 56, "embed_dim": 88, "depth": 3, "num_heads": 4}
)
CLIP = VisionConfig(
    "vit_large_patch14_clip_quickgelu_224",
    56,
    64,
    {"img_size": 56, "embed_dim": 64, "depth": 2, "num_heads": 4},
)
LAVIS_NAMES = {"opt": "opt", "t5": "t5", "llama": "llm"}
"""Kind of a language model -> the beginning of the name of its projection in LAVIS."""


def is_clip(pattern: str) -> bool:
    """Return whether a pattern of LAVIS' names belongs to the CLIP encoder and not to EVA's."""
    return any(word in pattern for word in ("class_emb", "positional", "conv1", "ln_pre", "resblocks"))


def eva_captioner(kind: str) -> Captioner:
    """Return a random captioner with an EVA encoder. kind: opt, t5 or llama, whose Q-Former reads the prompt."""
    tokenizer = byte_tokenizer(kind)
    language = read_language_config(language_config(kind), tokenizer, Path("x"), reads_prompt=kind == "llama")
    if kind == "llama":
        language = replace(language, start_id=language.end_id)
    qformer = QFORMER if kind == "llama" else replace(QFORMER, vocab_size=30523, max_positions=512)
    net = randomise_weights(Captioner(CaptionerConfig(EVA, qformer, language), torch.nn.Identity()))
    net.language = random_language(kind)
    return net


def random_net(vision: VisionConfig) -> Retriever:
    """Return a random retriever with the image encoder of a config."""
    torch.manual_seed(5)
    net = Retriever(Blip2Config(vision, QFORMER, embed_dim=24, max_tokens=32)).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.copy_(
            torch.randn_like(parameter) * (0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
        )
    net.temperature.fill_(0.07)
    return net


def lavis_state(net: Retriever, clip: bool) -> dict[str, Tensor]:
    """Return the tensors of a retriever under LAVIS' names, and those that its files hold twice.

    The names come from the converter's table, read from right to left. clip: whether the encoder is CLIP's.
    """
    state = {"Qformer.bert.embeddings.position_ids": torch.arange(32)[None]}
    rows = tuple(row for row in LAVIS if not row[0].startswith("visual") or is_clip(row[0]) == clip)
    for name, tensor in net.state_dict().items():
        key = to_their_name(name, rows)
        assert key is not None, name
        state[key] = tensor
    state["query_tokens"] = state["query_tokens"][None]
    if clip:
        state["visual_encoder.class_embedding"] = state["visual_encoder.class_embedding"][0, 0]
        state["visual_encoder.positional_embedding"] = state["visual_encoder.positional_embedding"][0]
    state["Qformer.cls.predictions.bias"] = state["Qformer.cls.predictions.decoder.bias"]
    state["Qformer.cls.predictions.decoder.weight"] = state["Qformer.bert.embeddings.word_embeddings.weight"]
    return state


def write_lavis_retriever(folder: Path, net: Retriever, clip: bool = False) -> tuple[Path, Path]:
    """Write a retriever as LAVIS' two files; return the paths of blip2.pth and encoder.pth.

    blip2.pth holds all but the encoder, beside other values that LAVIS' runner saves; encoder.pth also holds tensors
    that BLIP-2 does not use.
    """
    state = lavis_state(net, clip)
    encoder = {
        name.removeprefix("visual_encoder."): tensor
        for name, tensor in state.items()
        if name.startswith("visual_encoder.")
    }
    encoder |= (
        {"ln_post.weight": torch.ones(3)}
        if clip
        else {"head.weight": torch.ones(2, 3), "norm.bias": torch.ones(3)}
    )
    unused_layer = "transformer.resblocks.23.ln_1.bias" if clip else "blocks.39.norm1.bias"
    torch.save(encoder | {unused_layer: torch.ones(2)}, folder / "encoder.pth")
    model = {name: tensor for name, tensor in state.items() if not name.startswith("visual_encoder.")}
    torch.save({"model": model, "epoch": 3, "config": {"lr": 1e-4}, "scaler": None}, folder / "blip2.pth")
    return folder / "blip2.pth", folder / "encoder.pth"


def write_lavis_captioner(net: Captioner, kind: str, folder: Path) -> tuple[Path, Path]:
    """Write a captioner as LAVIS' two files; return the paths of stage2.pth and encoder.pth.

    stage2.pth holds all but the frozen parts, as LAVIS' runner saves it; the language model is in neither file.
    """
    rows = tuple(row for row in LAVIS_CAPTIONER if not is_clip(row[0]))
    rows = tuple(row for row in rows if row[1] != "projection.*" or row[0].startswith(LAVIS_NAMES[kind]))
    state: dict[str, Any] = {}
    for name, tensor in net.state_dict().items():
        if not name.startswith("language."):
            key = to_their_name(name, rows)
            assert key is not None, name
            state[key] = tensor
    state["query_tokens"] = state["query_tokens"][None]
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(32)[None]
    model = {name: tensor for name, tensor in state.items() if not name.startswith("visual_encoder.")}
    torch.save({"model": model, "epoch": 3}, folder / "stage2.pth")
    encoder = {
        name.removeprefix("visual_encoder."): tensor for name, tensor in state.items() if name not in model
    }
    torch.save(encoder, folder / "encoder.pth")
    return folder / "stage2.pth", folder / "encoder.pth"
