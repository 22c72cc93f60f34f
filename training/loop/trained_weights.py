"""Hold the weights that are trained: a model's parameters, and float32 masters where it computes in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.distributed.wrapping import gather_full_tensors, shard_like

SEPARATE_PARTS = ("vision.", "language.")
"""Prefixes of the parts of a model whose inputs are cast to their dtype, so that it may differ from the rest's."""


class TrainedWeights:
    """The trained parameters of a model, and their float32 masters where the model computes in bfloat16.

    In float32 the masters are the parameters themselves.
    names: names of the trained parameters. masters, parameters: their tensors, in the order of the names.
    """

    def __init__(self, model: nn.Module, dtype: str):
        """Cast the parameters of a model to bfloat16, unless dtype is "float32", and keep masters of the trained ones.

        Frozen parameters between trained ones are cast as well, and get their values back in the end. A frozen image
        encoder or language model keeps the dtype that it has.

        Under FSDP, dtype is "float32": it casts the weights that it gathers, and keeps float32 weights itself.
        """
        self.model = model
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.masters = self._list_parameters()
        self.has_masters = dtype != "float32"
        if self.has_masters:
            self.masters = [weight.detach().float().clone().requires_grad_() for weight in self.masters]
            self.frozen = {
                name: parameter.data
                for name, parameter in model.named_parameters()
                if not parameter.requires_grad and not name.startswith(SEPARATE_PARTS)
            }
            self._cast(torch.bfloat16)
        self.parameters = self._list_parameters()

    def _list_parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def move_gradients_to_masters(self) -> None:
        """Move the gradients of the parameters to the masters, before the optimizer's step."""
        if self.has_masters:
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None

    def copy_masters_to_model(self) -> None:
        """Copy the values of the masters to the parameters, after the optimizer's step."""
        if self.has_masters:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.masters)

    def restore_float32(self) -> None:
        """Make the model float32 again, with the values of the masters, when training is over."""
        if self.has_masters:
            self._cast(torch.float32)
            self.copy_masters_to_model()
            for name, value in self.frozen.items():
                self.model.get_parameter(name).data = value

    def _cast(self, dtype: torch.dtype) -> None:
        """Cast all parameters but frozen ones of `SEPARATE_PARTS`; running statistics keep their precision."""
        frozen = [self.model.get_parameter(name) for name in self.frozen]
        for parameter in [*self._list_parameters(), *frozen]:
            parameter.data = parameter.data.to(dtype)

    def state(self) -> dict[str, Tensor]:
        """Return the trained values in float32 and the buffers, whole and by name; all processes must call it."""
        return gather_full_tensors(self._named_tensors())

    def _named_tensors(self) -> dict[str, Tensor]:
        """Return the masters and the buffers by name, sharded where they are."""
        named = dict(zip(self.names, self.masters, strict=True))
        return {name: value.detach() for name, value in [*named.items(), *self.model.named_buffers()]}

    def load(self, state: dict[str, Tensor]) -> bool:
        """Load a `state` and return True; return False, and change nothing, when it belongs to another model."""
        tensors = self._named_tensors()
        if state.keys() != tensors.keys():
            return False
        if any(state[name].shape != tensor.shape for name, tensor in tensors.items()):
            return False
        for name, value in tensors.items():
            value.copy_(shard_like(state[name], value))
        self.copy_masters_to_model()
        return True
