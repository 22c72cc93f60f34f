"""The files of a checkpoint folder: their names, how JSON and tokenizers are read, and how a folder is written whole.

A retrieval checkpoint is config.json + model.safetensors + tokenizer.json. A generative one has its language model, a
transformers folder of its own, in `language/`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from engine.errors import CheckpointError

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
VOCABULARY = "vocab.txt"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth")
LANGUAGE = "language"


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json, or a vocab.txt as bert-base-uncased has it. Raises CheckpointError when it is neither."""
    is_json = path.suffix == ".json"
    try:
        if is_json:
            return Tokenizer.from_file(str(path))
        return BertWordPieceTokenizer(str(path), lowercase=True)._tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        kind = "tokenizer" if is_json else "vocabulary"
        raise CheckpointError(f"{path} is not a readable {kind}: {error}") from error


def with_dec(tokenizer: Tokenizer) -> Tokenizer:
    """[DEC] as the last token, where the vocabulary has none (LAVIS adds it to BERT's)."""
    if tokenizer.token_to_id("[DEC]") is None:
        tokenizer.add_special_tokens(["[DEC]"])
    return tokenizer


def missing_file(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{folder} has no {name}; copy the model folder again.")


def read_json(path: Path) -> Any:
    """Raises CheckpointError when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error


def write_folder(
    folder: Path, state: Mapping[str, torch.Tensor], tokenizer: Tokenizer | None, config: Mapping[str, Any]
) -> None:
    """Replace a folder's files one by one, each whole, the config last. tokenizer: None where no text is read."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(
        tensors, folder / (WEIGHTS + ".new"), metadata={"format": "pt"}
    )  # transformers asks for the format
    os.replace(folder / (WEIGHTS + ".new"), folder / WEIGHTS)
    if tokenizer is not None:
        tokenizer.save(str(folder / TOKENIZER))
    (folder / (CONFIG + ".new")).write_text(json.dumps(config, indent=1) + "\n")
    os.replace(folder / (CONFIG + ".new"), folder / CONFIG)
