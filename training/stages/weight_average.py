"""Averages of weights: of models that were trained on from the same one (model soups, arXiv:2203.05482), or of a model
before and after a run (arXiv:2109.01903). They forget less and know more than each of them, and cost nothing to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.checkpoints.building import load_net
from engine.checkpoints.saving import save_checkpoint
from engine.errors import CheckpointError
from engine.models.catalogue import find_model


def blend_weights(net: nn.Module, other: Mapping[str, Tensor], share: float) -> None:
    """Make `share` of net's weights other's; whole numbers (counters) stay."""
    with torch.no_grad():
        own = net.state_dict()
        for name, value in other.items():
            if value.is_floating_point():
                own[name].lerp_(value.to(own[name]), share)


def average_models(names: Sequence[str], output: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write the mean of retrieval models as the checkpoint folder `output`.

    names: of models, folders or Hugging Face ids; one that is named twice counts twice. Raises CheckpointError for less
    than two, and for models of other architectures or vocabularies than the first's.
    """
    if len(names) < 2:
        raise CheckpointError(f"{len(names)} model has no average; name two or more.")
    net, tokenizer = load_net(find_model(names[0]))
    words = tokenizer.tokenizer.to_str()
    for count, name in enumerate(names[1:], 2):
        another, its_tokenizer = load_net(find_model(name))
        for what, same in (
            ("architecture", another.config == net.config),
            ("vocabulary", its_tokenizer.tokenizer.to_str() == words),
        ):
            if not same:
                raise CheckpointError(
                    f"{name} has another {what} than {names[0]}; only models that were trained on from the same one "
                    "have a useful average."
                )
        blend_weights(net, another.state_dict(), 1 / count)
    save_checkpoint(output, net, tokenizer.tokenizer, dtype=dtype)
