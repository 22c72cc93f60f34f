"""Count the floating-point operations of a training step, without changing a bit of its result."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class OperationCount(TorchDispatchMode):
    """A counter of the operations of matrix products and convolutions, backward passes included, by PyTorch's formulas.

    PyTorch's own FlopCounterMode is not used because it takes operators apart to count them. That changes the last bits
    of the step, so that a resumed run, whose first step is counted, would differ from a run that was never stopped.
    operations: the count, 0 before the first product.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=out)
        return out
