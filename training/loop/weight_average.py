"""Average the weights of models that were trained further from the same one (model soups, arXiv:2203.05482).

A model before and after a run can be averaged, too (arXiv:2109.01903). An average often scores better than each of its
parts and forgets less, and it is no slower to use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.checkpoints.building import load_net
from engine.checkpoints.saving import save_checkpoint
from engine.errors import CheckpointError
from engine.models.catalogue import find_model
from engine.wording import count_text


def blend_weights(net: nn.Module, other: Mapping[str, Tensor], share: float) -> None:
    """Move the weights of a network towards other weights by a share, 0 to 1; whole numbers (counters) stay."""
    with torch.no_grad():
        weights = net.state_dict()
        for name, value in other.items():
            if value.is_floating_point():
                weights[name].lerp_(value.to(weights[name]), share)


def average_models(names: Sequence[str], output: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write the mean of retrieval models as the checkpoint folder `output`.

    names: models by name, folders, or Hugging Face ids; a model that is named twice counts twice. dtype: the type of
    the weights that are written. Raises CheckpointError for fewer than two names, and for models whose architecture or
    vocabulary is not that of the first.
    """
    if len(names) < 2:
        raise CheckpointError(f"{count_text(len(names), 'model')} cannot be averaged; name two or more.")
    net, tokenizer = load_net(find_model(names[0]))
    vocabulary = tokenizer.tokenizer.to_str()
    for count, name in enumerate(names[1:], 2):
        next_net, next_tokenizer = load_net(find_model(name))
        for noun, is_equal in (
            ("architecture", next_net.config == net.config),
            ("vocabulary", next_tokenizer.tokenizer.to_str() == vocabulary),
        ):
            if not is_equal:
                raise CheckpointError(
                    f"{name} has another {noun} than {names[0]}; only models that were trained further from the same "
                    "model have a useful average."
                )
        blend_weights(net, next_net.state_dict(), 1 / count)
    save_checkpoint(output, net, tokenizer.tokenizer, dtype=dtype)
