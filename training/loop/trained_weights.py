"""Hold the weights that are trained: a model's parameters, and float32 masters where it computes in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.distributed.wrapping import gather_full_tensors, shard_like


class TrainedWeights:
    """What is trained of a model: its parameters, and float32 masters where the model computes in bfloat16.

    In float32 the masters are the parameters themselves.
    """

    def __init__(self, model: nn.Module, dtype: str):
        """dtype: "bfloat16" makes masters; "float32" none (FSDP casts what it gathers and keeps float32 itself)."""
        self.model = model
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.masters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.lowered = dtype != "float32"
        if self.lowered:
            self.masters = [p.detach().float().clone().requires_grad_() for p in self.masters]
            self._cast(torch.bfloat16)
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]

    def move_gradients_to_masters(self) -> None:
        """Before the optimizer's step: the parameters' gradients become the masters'."""
        if self.lowered:
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None

    def copy_masters_to_model(self) -> None:
        """After it: the masters' values become the parameters'."""
        if self.lowered:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.masters)

    def restore_float32(self) -> None:
        """Training is over: the model is float32 again and holds the masters' values."""
        if self.lowered:
            self._cast(torch.float32)
            self.copy_masters_to_model()

    def _cast(self, dtype: torch.dtype) -> None:
        """What is trained alone: frozen parts and running statistics keep their precision."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def state(self) -> dict[str, Tensor]:
        """Trained values in float32, and buffers."""
        return gather_full_tensors(self._own())

    def _own(self) -> dict[str, Tensor]:
        named = dict(zip(self.names, self.masters, strict=True))
        return {name: value.detach() for name, value in [*named.items(), *self.model.named_buffers()]}

    def load(self, state: dict[str, Tensor]) -> bool:
        """Put a `state` back; False, and nothing changed, when it is another model's."""
        own = self._own()
        if state.keys() != own.keys() or any(state[name].shape != own[name].shape for name in own):
            return False
        for name, value in own.items():
            value.copy_(shard_like(state[name], value))
        self.copy_masters_to_model()
        return True
