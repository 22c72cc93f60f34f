"""A source becomes a network that is checked to fit: every tensor the config asks for, no other, each of its shape."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.blip2.captioner import Captioner
from engine.blip2.config import Blip2Config
from engine.blip2.retriever import Retriever
from engine.blip2.vision import has_batch_norms
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.checkpoint_sources import CaptionerSource, RetrieverSource
from engine.checkpoints.filling import check_fits, check_memory, put_tensors, without_storage
from engine.checkpoints.language_folder import make_language
from engine.checkpoints.layout import CONFIG, LANGUAGE
from engine.checkpoints.retrieval_reading import read_folder
from engine.errors import CheckpointError


def load_net(folder: Path) -> tuple[Retriever, TextTokenizer]:
    """The network of a checkpoint folder as it was saved, in float32 and ready to be trained on.

    Raises CheckpointError as `load_model` does.
    """
    source = read_folder(folder)
    return make_net(source, folder, torch.float32), TextTokenizer(source.tokenizer, source.config.max_tokens)


def make_net(source: RetrieverSource, where: Path, dtype: torch.dtype) -> Retriever:
    """The network with the source's weights, each read and cast by itself: never two copies in memory.

    dtype: of the floating tensors; an encoder with batch norms stays float32, to be folded before it is cast.
    """
    net = build_empty(source, where)
    if has_batch_norms(net):
        dtype = torch.float32
    check_memory(source.num_parameters * dtype.itemsize, where)
    put_tensors(net, source.tensors, dtype)
    return net


def build_empty(source: RetrieverSource, where: Path) -> Retriever:
    """The empty network of the source's config. Raises CheckpointError when its tensors do not fit it."""
    net = _empty_net(source.config, where)
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    check_fits(wanted, source.tensors, where)
    return net


def _empty_net(config: Blip2Config, folder: Path) -> Retriever:
    """The network without weights: parameters take no memory, buffers are there."""
    former = config.qformer
    try:
        if former.width % former.num_heads:
            raise ValueError(f"width {former.width} is not a multiple of num_heads {former.num_heads}")
        if not 2 < config.max_tokens <= former.max_positions:
            raise ValueError(
                f"max_tokens {config.max_tokens} is not in 3 to max_positions {former.max_positions}"
            )
        with without_storage():
            return Retriever(config)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # values of another kind or sign, from torch and timm
        raise CheckpointError(f"{folder / CONFIG} describes no model that can be made: {error}") from error


def make_captioner(
    source: CaptionerSource, where: Path, dtype: torch.dtype, language_dtype: torch.dtype | None = None
) -> Captioner:
    """The network with the source's weights, language model and all; see `make_net`.

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
