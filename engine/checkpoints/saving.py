"""A trained network becomes a checkpoint folder, for retrieval or for captioning.

A generative checkpoint is config.json + model.safetensors + language/ (+ tokenizer.json): `language/` is a transformers
folder of the frozen language model with its tokenizer; tokenizer.json is that of a Q-Former that reads the prompt.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from engine.blip2.captioner import Captioner
from engine.blip2.retriever import Retriever
from engine.checkpoints.checkpoint_sources import CaptionerSource, LanguageSource, encoder_tensors
from engine.checkpoints.filling import digest_of_tensors
from engine.checkpoints.language_folder import save_language
from engine.checkpoints.layout import (
    LANGUAGE,
    TOKENIZER,
    WEIGHT_SUFFIXES,
    WEIGHTS,
    whole_folder,
    write_files,
    write_folder,
    write_weights,
)
from engine.checkpoints.tensors import read_safetensors
from engine.errors import CheckpointError


def save_checkpoint(
    folder: Path, net: Retriever, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write net as a checkpoint folder; floating tensors in dtype, counters as they are."""
    write_folder(folder, cast_floats(net.state_dict(), dtype), tokenizer, net.config.to_dict())


def cast_floats(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating tensors in dtype, counters as they are."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


def save_captioner(
    folder: Path,
    net: Captioner,
    language_tokenizer: Tokenizer,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    language_files: Sequence[Path] = (),
    encoder: str = "",
) -> None:
    """Write net as a checkpoint folder; its own floating tensors in dtype, the language model as it is.

    tokenizer: of a Q-Former that reads the prompt. language_files: the language model's (`LanguageSource.files`),
    copied byte for byte; without them it is written from memory. encoder: the model folder beside `folder` whose image
    encoder is this one's, too, and is then not written again; raises CheckpointError when its weights in dtype differ.
    """
    own = cast_floats(own_state(net), dtype)
    config = replace(net.config, encoder="", encoder_digest="")
    if encoder:
        shared = encoder_tensors(read_safetensors(folder.parent / encoder / WEIGHTS))
        differing = [
            n for n, stored in shared.items() if n not in own or not torch.equal(own[n], stored.read())
        ]
        if differing or not shared:
            raise CheckpointError(
                f"The image encoder of {folder.parent / encoder} is not this captioner's: {len(differing)} of its "
                f"{len(shared)} tensors differ. Write the captioner whole."
            )
        own = {name: tensor for name, tensor in own.items() if name not in shared}
        config = replace(config, encoder=encoder, encoder_digest=digest_of_tensors(shared))
    with whole_folder(folder) as half:
        if language_files:
            _copy(language_files, half / LANGUAGE)
            language_tokenizer.save(str(half / LANGUAGE / TOKENIZER))
        else:
            save_language(half / LANGUAGE, net.language, language_tokenizer)
        write_files(half, own, tokenizer, config.to_dict())


def save_trained(
    folder: Path, source: CaptionerSource, state: Mapping[str, torch.Tensor], *, dtype: torch.dtype
) -> None:
    """Write what training made of a source: the weights in `state` in dtype, its others as they were.

    The language model is copied bit for bit, out of a file that it shares with the rest too.
    """
    others = {name: tensor.read() for name, tensor in source.tensors.items() if name not in state}
    config = replace(source.config, encoder="", encoder_digest="")  # it holds its own now
    with whole_folder(folder) as half:
        _write_language(half / LANGUAGE, source.language)
        write_files(half, cast_floats({**others, **state}, dtype), source.tokenizer, config.to_dict())


def _write_language(folder: Path, language: LanguageSource) -> None:
    """Write the transformers folder of a language model: its files where it has its own, else its tensors."""
    folder.mkdir()
    if any(path.suffix in WEIGHT_SUFFIXES for path in language.files):
        _copy(language.files, folder)
    else:
        language.config.save_pretrained(folder)
        write_weights(folder, {name: tensor.read() for name, tensor in language.tensors.items()})
    language.tokenizer.save(str(folder / TOKENIZER))


def own_state(net: Captioner) -> dict[str, torch.Tensor]:
    """All but the language model's weights."""
    return {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("language.")}


def _copy(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
