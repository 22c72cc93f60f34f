"""Ways to damage a model folder in one place, each with a part of the message that the error must have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from tiny import SIDE
from tokenizers import Tokenizer, models

from engine.checkpoints.retrieval_reading import read_folder
from engine.models import hub, retrieval_model
from engine.models.loading import load_model

PICTURES = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
"""Three random pictures (3, SIDE, SIDE, 3) with which tests compare two models."""


def compute_folder_digest(folder: Path) -> str:
    """Return the digest of the files of a model folder."""
    return hub.compute_digest(read_folder(folder).files)


def load_on_cpu(folder: Path) -> retrieval_model.RetrievalModel:
    """Load a retrieval model on the CPU in float32."""
    return load_model(str(folder), device="cpu", dtype="float32")


def change_config(folder: Path, change: Callable[[dict], object]) -> None:
    """Rewrite config.json after `change` has altered its values."""
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def change_weights(folder: Path, change: Callable[[dict], object]) -> None:
    """Rewrite model.safetensors after `change` has altered its tensors."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


DAMAGED_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights gone": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a readable safetensors"),
    "weights cut": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1000]),
        "not a readable safetensors",
    ),
    "weights cut in the header": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:300]),
        "not a readable safetensors",
    ),
    "weights garbage": (
        lambda f: (f / "model.safetensors").write_bytes(bytes(range(256)) * 9),
        "not a readable safetensors",
    ),
    "weights are a page of a web site": (
        lambda f: (f / "model.safetensors").write_text("<!DOCTYPE html><html>Not found</html>"),
        "not a readable safetensors",
    ),
    "config gone": (lambda f: (f / "config.json").unlink(), "is not a model folder: config.json is missing"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not readable JSON"),
    "config no text": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe"),
        "config.json is not readable JSON",
    ),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "should hold a JSON object"),
    "tokenizer gone": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "tokenizer garbage": (lambda f: (f / "tokenizer.json").write_text("{}"), "not a readable tokenizer"),
    "tokenizer without [DEC]": (
        lambda f: Tokenizer(models.WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2}, "[PAD]")).save(
            str(f / "tokenizer.json")
        ),
        r"no \[DEC\] token",
    ),
}
"""Name of a damage -> (a function that damages a folder, a pattern for the error's message)."""
DAMAGED_CONFIGS: dict[str, tuple[Callable[[dict], object], str]] = {
    "unknown key": (lambda c: c.update(depth=3), r"unknown \['depth'\]"),
    "unknown inner key": (
        lambda c: c["qformer"].update(heads=3),
        r"\(qformer\): missing nothing, unknown \['heads'\]",
    ),
    "missing key": (lambda c: c["vision"].pop("timm_name"), r"\(vision\): missing \['timm_name'\]"),
    "vision a word": (lambda c: c.update(vision="vit"), "should hold a JSON object, not 'vit'"),
    "other width": (
        lambda c: c["qformer"].update(width=64),
        r"match_head\.weight is \(2, 32\), should be \(2, 64\)",
    ),
    "other embedding": (lambda c: c.update(embed_dim=8), r"photo_head\.bias is \(16,\), should be \(8,\)"),
    "more layers": (lambda c: c["qformer"].update(num_layers=4), r"missing qformer\.layers\.3\."),
    "fewer layers": (lambda c: c["qformer"].update(num_layers=2), r"unknown qformer\.layers\.2\."),
    "more patches": (lambda c: c["vision"]["timm_args"].update(img_size=64), r"pos_embed is \(1, 17, 32\)"),
    "other encoder": (lambda c: c["vision"].update(timm_name="no_such_net"), "'no_such_net' cannot be made"),
    "other channels": (
        lambda c: c["vision"].update(num_channels=40),
        "gives 32 channels, but config.json says 40",
    ),
    "a word for a number": (lambda c: c["qformer"].update(num_layers="two"), "No model can be made of"),
    "a width below zero": (lambda c: c["qformer"].update(width=-32), "No model can be made of"),
    "heads that do not divide": (
        lambda c: c["qformer"].update(num_heads=5),
        "width is 32; it must be a multiple of num_heads, 5",
    ),
    "texts beyond positions": (
        lambda c: c.update(max_tokens=17),
        "max_tokens is 17; it must be from 3 to max_positions, 16",
    ),
    "a small vocabulary": (lambda c: c["qformer"].update(vocab_size=5), r"words\.weight is|has \d+ tokens"),
}
"""Name of a damage -> (a function that changes the values of config.json, a pattern for the error's message)."""
