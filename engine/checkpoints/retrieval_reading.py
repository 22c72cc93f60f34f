"""Read the folder of a retrieval checkpoint as a RetrieverSource, whether qseek or transformers wrote it.

The folder of a captioner, which cannot search, is refused with a hint at what to use instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from engine.blip2.config import Blip2Config
from engine.checkpoints.checkpoint_sources import RetrieverSource
from engine.checkpoints.encoder_packages import add_packaged_encoder
from engine.checkpoints.key_names import TRANSFORMERS, rename_tensors
from engine.checkpoints.layout import (
    CONFIG,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    add_dec_token,
    missing_file_error,
    not_a_model_folder_error,
    read_json,
    read_tokenizer,
)
from engine.checkpoints.tensors import StoredTensor, as_stored, read_safetensors, unpack_words
from engine.checkpoints.transformers_folders import read_transformers_config, read_transformers_tensors
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
    """Open the folder of a retrieval checkpoint, in the layout of qseek or transformers.

    Raises CheckpointError that says what is missing or does not fit.
    """
    if not (folder / CONFIG).is_file():
        raise not_a_model_folder_error(folder)
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict) or "model_type" not in values:
        return _read_qseek_folder(folder, values)
    if values["model_type"] == "instructblip":
        raise _generative_error(folder)
    if values["model_type"] != "blip-2":
        raise CheckpointError(
            f"{folder} holds a model of type {values['model_type']!r}, which is not BLIP-2. qseek searches with "
            "retrieval checkpoints of BLIP-2; `qseek models` lists those that it knows."
        )
    return _read_transformers_folder(folder, values)


def _read_qseek_folder(folder: Path, values: Any) -> RetrieverSource:
    if isinstance(values, dict) and "language" in values:
        raise _generative_error(folder)
    try:
        config = Blip2Config.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"In {folder}: {error}") from error
    stored = unpack_words(read_safetensors(folder / WEIGHTS))
    tensors = add_packaged_encoder(config.vision, stored, folder)
    tokenizer, vocabulary = _read_folder_tokenizer(folder, config)
    files, shared = (folder / CONFIG, folder / WEIGHTS, vocabulary), frozenset(tensors.keys() - stored.keys())
    return RetrieverSource(config, tensors, tokenizer, files, shared)


def _read_transformers_folder(folder: Path, values: dict[str, Any]) -> RetrieverSource:
    tensors, files = read_transformers_tensors(folder)
    refuse_generative(tensors, folder)
    config = read_transformers_config(values, folder)
    ours = rename_tensors(tensors, TRANSFORMERS)
    # transformers leaves the temperature out. It decides nothing in a search; 0.07 is the value at which BLIP-2 starts.
    ours["temperature"] = as_stored(torch.tensor(0.07))
    tokenizer, vocabulary = _read_folder_tokenizer(folder, config)
    return RetrieverSource(config, ours, tokenizer, (folder / CONFIG, *files, vocabulary))


def refuse_generative(tensors: Mapping[str, StoredTensor], path: Path) -> None:
    """Raise CheckpointError for the tensors of a captioner (stage 2), which cannot search."""
    if any(key.startswith(GENERATIVE) for key in tensors):
        raise _generative_error(path)


def _generative_error(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a captioner (BLIP-2 stage 2): it has a language model and no text branch, so it cannot search. "
        "Use a retrieval checkpoint such as blip2-itm-vit-g."
    )


def _read_folder_tokenizer(folder: Path, config: Blip2Config) -> tuple[Tokenizer, Path]:
    """Read a folder's tokenizer from tokenizer.json, or else from vocab.txt; return it with that file."""
    path = next((folder / n for n in (TOKENIZER, VOCABULARY) if (folder / n).is_file()), None)
    if path is None:
        raise missing_file_error(folder, TOKENIZER)
    tokenizer = read_tokenizer(path)
    if path.name == VOCABULARY or not config.has_captions:
        tokenizer = add_dec_token(tokenizer)
    if tokenizer.get_vocab_size() > config.qformer.vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, but {CONFIG} says {config.qformer.vocab_size}."
        )
    return tokenizer, path
