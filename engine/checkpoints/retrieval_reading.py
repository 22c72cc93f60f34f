"""A folder becomes a RetrieverSource, whether qseek or transformers wrote it.

A folder of a generative checkpoint, which cannot search, is refused with a word on what to use instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from engine.blip2.config import Blip2Config
from engine.checkpoints.checkpoint_sources import RetrieverSource
from engine.checkpoints.key_names import TRANSFORMERS, renamed
from engine.checkpoints.layout import (
    CONFIG,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    missing_file,
    read_json,
    read_tokenizer,
    with_dec,
)
from engine.checkpoints.tensors import StoredTensor, read_safetensors, stored
from engine.checkpoints.transformers_folders import config_from_transformers, transformers_tensors
from engine.errors import CheckpointError

GENERATIVE = (
    "language_model.",
    "language_projection.",
    "opt_model.",
    "t5_model.",
    "opt_proj.",
    "t5_proj.",
    "llm_",
)


def read_folder(folder: Path) -> RetrieverSource:
    """A checkpoint folder, ours or transformers'. Raises CheckpointError saying what is missing or does not fit."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is no model: it has no {CONFIG}.")
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict) or "model_type" not in values:
        return _own(folder, values)
    if values["model_type"] == "instructblip":
        raise _generative(folder)
    if values["model_type"] != "blip-2":
        raise CheckpointError(
            f"{folder} holds a {values['model_type']!r} model, not BLIP-2; qseek searches with BLIP-2's retrieval "
            "checkpoints, `qseek models` lists those it knows."
        )
    return _transformers(folder, values)


def _own(folder: Path, values: Any) -> RetrieverSource:
    if isinstance(values, dict) and "language" in values:
        raise _generative(folder)
    try:
        config = Blip2Config.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"In {folder}: {error}") from error
    tensors = read_safetensors(folder / WEIGHTS)
    tokenizer, vocabulary = _tokenizer(folder, config)
    return RetrieverSource(config, tensors, tokenizer, (folder / CONFIG, folder / WEIGHTS, vocabulary))


def _transformers(folder: Path, values: dict[str, Any]) -> RetrieverSource:
    tensors, files = transformers_tensors(folder)
    refuse_generative(tensors, folder)
    config = config_from_transformers(values, folder)
    ours = renamed(tensors, TRANSFORMERS)
    # Not in these checkpoints: the temperature decides nothing in a search, 0.07 is where BLIP-2 starts.
    ours["temperature"] = stored(torch.tensor(0.07))
    tokenizer, vocabulary = _tokenizer(folder, config)
    return RetrieverSource(config, ours, tokenizer, (folder / CONFIG, *files, vocabulary))


def refuse_generative(tensors: Mapping[str, StoredTensor], where: Path) -> None:
    """Raises CheckpointError for a stage-2 checkpoint."""
    if any(key.startswith(GENERATIVE) for key in tensors):
        raise _generative(where)


def _generative(where: Path) -> CheckpointError:
    return CheckpointError(
        f"{where} is a generative (stage 2) BLIP-2: it has a language model and no text branch, so it cannot "
        "search; use a retrieval checkpoint such as blip2-itm-vit-g."
    )


def _tokenizer(folder: Path, config: Blip2Config) -> tuple[Tokenizer, Path]:
    """The folder's tokenizer and the file it is made from: tokenizer.json, or where there is none vocab.txt."""
    path = next((folder / n for n in (TOKENIZER, VOCABULARY) if (folder / n).is_file()), None)
    if path is None:
        raise missing_file(folder, TOKENIZER)
    tokenizer = read_tokenizer(path)
    if path.name == VOCABULARY or not config.has_captions:
        tokenizer = with_dec(tokenizer)
    if tokenizer.get_vocab_size() > config.qformer.vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, {CONFIG} says {config.qformer.vocab_size}."
        )
    return tokenizer, path
