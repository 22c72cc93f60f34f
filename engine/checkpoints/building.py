"""A source becomes a network that is checked to fit: every tensor the config asks for, no other, each of its shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from engine.blip2.captioner import Captioner
from engine.blip2.retriever import Retriever
from engine.blip2.vision import has_batch_norms
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.checkpoint_sources import CaptionerSource, RetrieverSource
from engine.checkpoints.filling import check_fits, check_memory, put_tensors, without_storage
from engine.checkpoints.language_folder import make_language
from engine.checkpoints.layout import CONFIG, LANGUAGE
from engine.checkpoints.retrieval_reading import read_folder
from engine.errors import CheckpointError

Net = TypeVar("Net", Retriever, Captioner)


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


def make_captioner(
    source: CaptionerSource, where: Path, dtype: torch.dtype, language_dtype: torch.dtype | None = None
) -> Captioner:
    """The network with the source's weights, language model and all; see `make_net`.

    language_dtype: of the language model, where it is another.
    """
    # the language model takes the place of the Identity below
    net = _fitting(lambda: Captioner(source.config, torch.nn.Identity()), source, where)
    check_memory(source.num_parameters * dtype.itemsize, where)
    language = make_language(
        source.language.config, source.language.tensors, where / LANGUAGE, language_dtype or dtype
    )
    width = language.get_input_embeddings().embedding_dim
    if width != source.config.language.width:
        raise CheckpointError(
            f"The language model in {where / LANGUAGE} is {width} wide, {CONFIG} says "
            f"{source.config.language.width}: it is another one than the projection was trained for."
        )
    put_tensors(net, source.tensors, torch.float32 if has_batch_norms(net) else dtype)
    net.language = language
    return net


def build_empty(source: RetrieverSource, where: Path) -> Retriever:
    """The empty network of the source's config. Raises CheckpointError when its tensors do not fit it."""

    def make() -> Retriever:
        max_tokens, max_positions = source.config.max_tokens, source.config.qformer.max_positions
        if not 2 < max_tokens <= max_positions:
            raise ValueError(f"max_tokens {max_tokens} is not in 3 to max_positions {max_positions}")
        return Retriever(source.config)

    return _fitting(make, source, where)


def _fitting(make: Callable[[], Net], source: RetrieverSource | CaptionerSource, where: Path) -> Net:
    """Build the network of the source's config without weights: parameters take no memory, buffers are there.

    make: builds it. where: the folder or file of the source, for messages. Raises CheckpointError for a config that
    describes no network, and for tensors that do not fit it.
    """
    former = source.config.qformer
    try:
        if former.width % former.num_heads:
            raise ValueError(f"width {former.width} is not a multiple of num_heads {former.num_heads}")
        with without_storage():
            net = make()
    # torch and timm raise these for values of another kind or sign
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{where / CONFIG} describes no model that can be made: {error}") from error
    check_fits({name: tuple(value.shape) for name, value in net.state_dict().items()}, source.tensors, where)
    return net
