"""Write a trained network as a checkpoint folder, for retrieval or for captioning.

The folder of a captioner has config.json, model.safetensors and language/, which is a transformers folder of the frozen
language model with its tokenizer; where the Q-Former reads the prompt, tokenizer.json is the Q-Former's.
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
from engine.checkpoints.checkpoint_sources import CaptionerSource, LanguageSource, select_encoder_tensors
from engine.checkpoints.encoder_packages import leave_out_packaged
from engine.checkpoints.filling import compute_tensor_digest
from engine.checkpoints.language_folder import save_language
from engine.checkpoints.layout import (
    LANGUAGE,
    TOKENIZER,
    WEIGHT_SUFFIXES,
    open_checkpoint_folder,
    write_files,
    write_folder,
    write_weights,
)
from engine.checkpoints.retrieval_reading import read_folder
from engine.checkpoints.tensors import pack_words
from engine.errors import CheckpointError


def save_checkpoint(
    folder: Path, net: Retriever, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float32,
    int8_words: bool = False,
) -> None:  # fmt: skip
    """Write a retrieval network as a checkpoint folder.

    dtype: the type that floating-point tensors are cast to. int8_words: whether the word embeddings are written as
    int8 (`word_table.py`).
    """
    state = leave_out_packaged(cast_floats(net.state_dict(), dtype), net.config.vision)
    if int8_words:
        state = pack_words(state)
    write_folder(folder, state, tokenizer, net.config.to_dict())


def cast_floats(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return tensors with the floating-point ones cast to a dtype, and the others as they are."""
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
    """Write a captioning network as a checkpoint folder.

    tokenizer: the tokenizer of a Q-Former that reads the prompt. dtype: the type that floating-point tensors are cast
    to, except those of the language model. language_files: the files of the language model (`LanguageSource.files`),
    which are copied byte for byte; without them it is written from memory. encoder: name of a model folder beside
    `folder` with the same image encoder, which is then not written again; raises CheckpointError when its weights in
    dtype differ.
    """
    own_tensors = cast_floats(collect_own_tensors(net), dtype)
    config = replace(net.config, encoder="", encoder_digest="")
    if encoder:
        shared = select_encoder_tensors(read_folder(folder.parent / encoder).tensors)
        differing = [
            name
            for name, tensor in shared.items()
            if name not in own_tensors or not torch.equal(own_tensors[name], tensor.read())
        ]
        if differing or not shared:
            raise CheckpointError(
                f"The image encoder of {folder.parent / encoder} is not this captioner's: {len(differing)} of its "
                f"{len(shared)} tensors differ. Write the captioner with an encoder of its own."
            )
        own_tensors = {name: tensor for name, tensor in own_tensors.items() if name not in shared}
        config = replace(config, encoder=encoder, encoder_digest=compute_tensor_digest(shared))
    with open_checkpoint_folder(folder) as half:
        if language_files:
            _copy(language_files, half / LANGUAGE)
            language_tokenizer.save(str(half / LANGUAGE / TOKENIZER))
        else:
            save_language(half / LANGUAGE, net.language, language_tokenizer)
        write_files(half, leave_out_packaged(own_tensors, config.vision), tokenizer, config.to_dict())


def save_trained(
    folder: Path, source: CaptionerSource, state: Mapping[str, torch.Tensor], *, dtype: torch.dtype
) -> None:
    """Write a captioner that was trained from a source: the trained weights of `state` with the source's others.

    dtype: the type that floating-point tensors are cast to. The language model is copied bit for bit, even out of a
    file that it shares with other parts.
    """
    others = {name: tensor.read() for name, tensor in source.tensors.items() if name not in state}
    config = replace(source.config, encoder="", encoder_digest="")  # The folder holds the encoder itself.
    with open_checkpoint_folder(folder) as half:
        _write_language(half / LANGUAGE, source.language)
        tensors = leave_out_packaged(cast_floats({**others, **state}, dtype), config.vision)
        write_files(half, tensors, source.tokenizer, config.to_dict())


def _write_language(folder: Path, language: LanguageSource) -> None:
    """Write the transformers folder of a language model, by its files where they are its alone, else by its tensors."""
    folder.mkdir()
    if any(path.suffix in WEIGHT_SUFFIXES for path in language.files):
        _copy(language.files, folder)
    else:
        language.config.save_pretrained(folder)
        write_weights(folder, {name: tensor.read() for name, tensor in language.tensors.items()})
    language.tokenizer.save(str(folder / TOKENIZER))


def collect_own_tensors(net: Captioner) -> dict[str, torch.Tensor]:
    """Return the tensors of a captioner without those of its language model."""
    return {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("language.")}


def _copy(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
