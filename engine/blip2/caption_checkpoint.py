"""A generative checkpoint as a folder: config.json + model.safetensors + language/ (+ tokenizer.json).

`language/` is a transformers folder of the frozen language model with its tokenizer; tokenizer.json is that of a
Q-Former that reads the prompt. Loading is strict, as of any checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from engine.blip2.caption_model import CaptionModel
from engine.blip2.caption_sources import LANGUAGE, CaptionerSource, encoder_tensors, read_captioner
from engine.blip2.captioner import Captioner
from engine.blip2.checkpoint import (
    WEIGHT_SUFFIXES,
    cast_floats,
    check_memory,
    digest_of,
    find_model,
    lasting_name,
    where_and_how,
    write_folder,
)
from engine.blip2.language import make_language, save_language
from engine.blip2.language_text import LanguageTokenizer
from engine.blip2.meta import check_fits, digest_of_tensors, put_tensors, without_storage
from engine.blip2.preprocess import TextTokenizer
from engine.blip2.sources import CONFIG, TOKENIZER, WEIGHTS, read_safetensors
from engine.blip2.vision import has_batch_norms
from engine.errors import CheckpointError


def load_captioner(name: str, *, device: str = "auto", dtype: str = "auto") -> CaptionModel:
    """Load a generative checkpoint by name, folder or Hugging Face id of a downloaded one.

    device, dtype: see `checkpoint.load_model`. Raises CheckpointError as it does, and for a model without a language
    model, naming some that have one.
    """
    place, wanted = where_and_how(device, dtype)
    folder = find_model(name)
    source = read_captioner(folder)
    net = make_captioner(source, folder, wanted)
    former = source.config.qformer
    prompts = None if source.tokenizer is None else TextTokenizer(source.tokenizer, former.max_positions)
    return CaptionModel(
        net,
        LanguageTokenizer(source.language.tokenizer, source.config.language, former.num_queries),
        prompts,
        name=lasting_name(name, folder),
        digest=digest_of(source.files),
        folder=folder,
        device=place,
        dtype=wanted,
    )


def make_captioner(
    source: CaptionerSource, where: Path, dtype: torch.dtype, language_dtype: torch.dtype | None = None
) -> Captioner:
    """The network with the source's weights, language model and all; see `checkpoint.make_net`.

    language_dtype: of the language model, where it is another.
    """
    check_memory(source.num_parameters * dtype.itemsize, where)
    config = source.config
    try:
        if config.qformer.width % config.qformer.num_heads:
            raise ValueError(
                f"width {config.qformer.width} is not a multiple of num_heads {config.qformer.num_heads}"
            )
        with without_storage():
            net = Captioner(config, torch.nn.Identity())  # whose place the language model takes
    except (TypeError, ValueError, RuntimeError) as error:  # values of another kind or sign
        raise CheckpointError(f"{where / CONFIG} describes no model that can be made: {error}") from error
    check_fits({name: tuple(value.shape) for name, value in net.state_dict().items()}, source.tensors, where)
    language = make_language(
        source.language.config, source.language.tensors, where / LANGUAGE, language_dtype or dtype
    )
    width = language.get_input_embeddings().embedding_dim
    if width != config.language.width:
        raise CheckpointError(
            f"The language model in {where / LANGUAGE} is {width} wide, {CONFIG} says {config.language.width}: it is "
            "another one than the projection was trained for."
        )
    put_tensors(net, source.tensors, torch.float32 if has_batch_norms(net) else dtype)
    net.language = language
    return net


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
    if language_files:
        _copy(language_files, folder / LANGUAGE)
        language_tokenizer.save(str(folder / LANGUAGE / TOKENIZER))
    else:
        save_language(folder / LANGUAGE, net.language, language_tokenizer)
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
    write_folder(folder, own, tokenizer, config.to_dict())


def save_trained(
    folder: Path, source: CaptionerSource, state: Mapping[str, torch.Tensor], *, dtype: torch.dtype
) -> None:
    """Write what training made of a source: the weights in `state` in dtype, its others as they were.

    The language model is copied bit for bit, out of a file that it shares with the rest too.
    """
    language = source.language
    if any(path.suffix in WEIGHT_SUFFIXES for path in language.files):
        _copy(language.files, folder / LANGUAGE)
    else:
        language.config.save_pretrained(folder / LANGUAGE)
        tensors = {name: tensor.read().contiguous() for name, tensor in language.tensors.items()}
        save_file(tensors, folder / LANGUAGE / WEIGHTS, metadata={"format": "pt"})
    language.tokenizer.save(str(folder / LANGUAGE / TOKENIZER))
    others = {name: tensor.read() for name, tensor in source.tensors.items() if name not in state}
    config = replace(source.config, encoder="", encoder_digest="")  # it holds its own now
    write_folder(folder, cast_floats({**others, **state}, dtype), source.tokenizer, config.to_dict())


def own_state(net: Captioner) -> dict[str, torch.Tensor]:
    """All but the language model's weights."""
    return {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("language.")}


def _copy(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
