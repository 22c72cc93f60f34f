"""The files of a checkpoint folder: their names, how JSON and tokenizers are read, and how a folder is written whole.

A retrieval checkpoint is config.json + model.safetensors + tokenizer.json. A generative one has its language model, a
transformers folder of its own, in `language/`.
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
    """Write a checkpoint folder whole, see `whole_folder`. tokenizer: None where no text is read."""
    with whole_folder(folder) as half:
        write_files(half, state, tokenizer, config)


def write_files(
    folder: Path, state: Mapping[str, torch.Tensor], tokenizer: Tokenizer | None, config: Mapping[str, Any]
) -> None:
    """Write the files of a checkpoint into a folder that `whole_folder` gave. tokenizer: None where no text is read."""
    write_weights(folder, state)
    if tokenizer is not None:
        tokenizer.save(str(folder / TOKENIZER))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def write_weights(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write the safetensors file of a folder that `whole_folder` gave."""
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    # transformers asks for the format
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill with the files of a checkpoint, which are those of `folder` when the block ends.

    A reader, also after a power cut, finds the old checkpoint or the new one and never files of both. A folder is
    therefore made beside `folder` and takes its name. An empty `folder` stays where it is, since it may be a volume or
    a shell's current folder: files are made in a folder inside it and moved up, the config last, without which there is
    no checkpoint. Raises OSError when the disk refuses.
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
