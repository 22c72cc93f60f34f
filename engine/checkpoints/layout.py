"""Name the files of a checkpoint folder, read its JSON and its tokenizers, and write a folder as a whole.

A retrieval checkpoint has config.json, model.safetensors and tokenizer.json. A captioner also has its language model in
`language/`, which is a transformers folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from engine.atomic import create_folder, replace_folder, sync_folder
from engine.errors import CheckpointError

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
VOCABULARY = "vocab.txt"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth")
LANGUAGE = "language"


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, or a vocab.txt like that of bert-base-uncased. Raises CheckpointError for another file."""
    is_json = path.suffix == ".json"
    try:
        if is_json:
            return Tokenizer.from_file(str(path))
        return BertWordPieceTokenizer(str(path), lowercase=True)._tokenizer
    except Exception as error:  # The library tokenizers raises plain Exception.
        kind = "tokenizer" if is_json else "vocabulary"
        raise CheckpointError(f"{path} is not a readable {kind}: {error}") from error


def add_dec_token(tokenizer: Tokenizer) -> Tokenizer:
    """Add [DEC] as the last token of a tokenizer that lacks it, as LAVIS does with BERT's; return the tokenizer."""
    if tokenizer.token_to_id("[DEC]") is None:
        tokenizer.add_special_tokens(["[DEC]"])
    return tokenizer


def not_a_model_folder_error(folder: Path) -> CheckpointError:
    """Return the error for a folder without config.json."""
    return CheckpointError(
        f"{folder} is not a model folder: {CONFIG} is missing. Give a folder that holds one."
    )


def missing_file_error(folder: Path, name: str) -> CheckpointError:
    """Return the error for a model folder that lacks a file."""
    return CheckpointError(f"{folder} has no {name}. Copy the model folder again.")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises CheckpointError when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}.") from error


def write_folder(
    folder: Path, state: Mapping[str, torch.Tensor], tokenizer: Tokenizer | None, config: Mapping[str, Any]
) -> None:
    """Write a checkpoint folder as a whole; see `open_checkpoint_folder`. tokenizer: None where no text is read."""
    with open_checkpoint_folder(folder) as half:
        write_files(half, state, tokenizer, config)


def write_files(
    folder: Path, state: Mapping[str, torch.Tensor], tokenizer: Tokenizer | None, config: Mapping[str, Any]
) -> None:
    """Write the files of a checkpoint into a folder from `open_checkpoint_folder`.

    tokenizer: None where no text is read.
    """
    write_weights(folder, state)
    if tokenizer is not None:
        tokenizer.save(str(folder / TOKENIZER))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def write_weights(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write the safetensors file of a folder from `open_checkpoint_folder`."""
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    # transformers needs the entry "format".
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@contextmanager
def open_checkpoint_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill with the files of a checkpoint, which become those of `folder` when the block ends.

    A reader finds the old checkpoint or the new one and never files of both, even after a power cut. For this a new
    folder is made beside `folder` and then takes its name. An empty `folder` stays where it is, since it may be a
    volume or a shell's current folder: the files are written in a folder inside it and moved up, config.json last,
    without which there is no checkpoint. Raises OSError when the disk refuses.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        with create_folder(folder) as half:
            yield half
    elif any(folder.iterdir()):
        with replace_folder(folder) as half:
            yield half
    else:
        inner = folder / "checkpoint"
        try:
            with create_folder(inner) as half:
                yield half
            for path in sorted(inner.iterdir(), key=lambda path: path.name == CONFIG):
                os.replace(path, folder / path.name)
                sync_folder(folder)
        finally:
            shutil.rmtree(inner, ignore_errors=True)
