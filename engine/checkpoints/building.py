"""Build a network from a source, and check that it has every tensor of the config, no other, each of its shape."""

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
    """Load the network and the tokenizer of a retrieval checkpoint's folder in float32, ready to be trained on.

    Raises CheckpointError as `loading.load_model` does.
    """
    source = read_folder(folder)
    return make_net(source, folder, torch.float32), TextTokenizer(source.tokenizer, source.config.max_tokens)


def make_net(source: RetrieverSource, path: Path, dtype: torch.dtype) -> Retriever:
    """Make the retrieval network of a source with its weights, which are read and cast one at a time.

    There are never two copies of the weights in memory. path: the folder or file of the source, for messages. dtype:
    the type that floating-point tensors are cast to; an encoder with batch norms stays float32, so that they can be
    folded before it is cast. Raises CheckpointError when the weights do not fit the config or the memory.
    """
    net = build_empty(source, path)
    if has_batch_norms(net):
        dtype = torch.float32
    check_memory(source.num_parameters * dtype.itemsize, path)
    put_tensors(net, source.tensors, dtype)
    return net


def make_captioner(
    source: CaptionerSource, path: Path, dtype: torch.dtype, language_dtype: torch.dtype | None = None
) -> Captioner:
    """Make the captioning network of a source with its weights and its language model; see `make_net`.

    language_dtype: the dtype of the language model where it differs from `dtype`.
    """
    # The language model later takes the place of this Identity.
    net = _make_checked_net(lambda: Captioner(source.config, torch.nn.Identity()), source, path)
    check_memory(source.num_parameters * dtype.itemsize, path)
    language = make_language(
        source.language.config, source.language.tensors, path / LANGUAGE, language_dtype or dtype
    )
    width = language.get_input_embeddings().embedding_dim
    if width != source.config.language.width:
        raise CheckpointError(
            f"The language model in {path / LANGUAGE} has width {width}, but {CONFIG} says "
            f"{source.config.language.width}: the projection was trained for another one."
        )
    put_tensors(net, source.tensors, torch.float32 if has_batch_norms(net) else dtype)
    net.language = language
    return net


def build_empty(source: RetrieverSource, path: Path) -> Retriever:
    """Make the retrieval network of a source without its weights.

    Raises CheckpointError when the tensors of the source do not fit its config.
    """

    def make() -> Retriever:
        max_tokens, max_positions = source.config.max_tokens, source.config.qformer.max_positions
        if not 2 < max_tokens <= max_positions:
            raise ValueError(
                f"max_tokens is {max_tokens}; it must be from 3 to max_positions, {max_positions}."
            )
        return Retriever(source.config)

    return _make_checked_net(make, source, path)


def _make_checked_net(make: Callable[[], Net], source: RetrieverSource | CaptionerSource, path: Path) -> Net:
    """Make the network of a source without weights and check that its tensors fit.

    Parameters take no memory; buffers do. make: makes the network. path: the folder or file of the source, for
    messages. Raises CheckpointError for a config of which no network can be made, and for tensors that do not fit it.
    """
    former = source.config.qformer
    try:
        if former.width % former.num_heads:
            raise ValueError(
                f"width is {former.width}; it must be a multiple of num_heads, {former.num_heads}."
            )
        with without_storage():
            net = make()
    # torch and timm raise these errors for values of another kind or sign.
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"No model can be made of {path / CONFIG}: {error}") from error
    check_fits({name: tuple(value.shape) for name, value in net.state_dict().items()}, source.tensors, path)
    return net
