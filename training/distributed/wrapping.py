"""Wrap a network so that several processes train it: DDP copies it to each, FSDP gives each a part of every weight.

Gradients are averaged and clipped over all processes, and sharded tensors are made whole for checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from training.distributed.world import current_world


class NetworkWrapper(nn.Module):
    """A module that runs a function on a network: `wrapper(work, ...)` is `work(network, ...)`.

    DDP and FSDP act on the forward method of the module that they wrap, and a step calls many methods of a Q-Former. So
    the whole step runs inside the forward method of this module.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, work: Callable[..., Any], *args: Any) -> Any:
        return work(self.network, *args)


def wrap_with_ddp(wrapper: nn.Module, *, leaves_parameters_out: bool = False) -> nn.Module:
    """Wrap a network with DDP: each process holds the whole network, and gradients are averaged over processes.

    The averaging begins while the backward pass still runs. leaves_parameters_out: whether a step does not use some
    parameters (the heads of ITM and ITG, while ITC trains alone); these get no gradient.
    """
    devices = [torch.cuda.current_device()] if next(wrapper.parameters()).is_cuda else None
    return nn.parallel.DistributedDataParallel(
        wrapper, device_ids=devices, forward_sync_buffers=False, find_unused_parameters=leaves_parameters_out
    )


def shard_with_fsdp(wrapper: nn.Module, dtype: str) -> nn.Module:
    """Shard a network with FSDP2: each process keeps a part of every weight, its gradient and its optimizer state.

    The parts are float32. The encoder's blocks are gathered one after the other. All other weights, which a step uses
    many times, are gathered once a step. A frozen language model stays whole in each process.
    dtype: gathered weights are cast to it ("bfloat16"), or stay float32; gradients are summed in float32.
    """
    # The import takes seconds.
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    gathered_dtype = torch.bfloat16 if dtype == "bfloat16" else None
    policy = MixedPrecisionPolicy(
        param_dtype=gathered_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    vision = getattr(wrapper.network, "vision", None)
    for block in getattr(getattr(vision, "backbone", None), "blocks", ()):
        fully_shard(block, mp_policy=policy)
    # FSDP does not shard scalars: each process keeps the temperature.
    scalars = {parameter for parameter in wrapper.parameters() if parameter.ndim == 0}
    for scalar in scalars:
        scalar.register_post_accumulate_grad_hook(_average_gradient)
    # The language model is frozen, and its word embeddings are used outside of its forward method.
    language = getattr(wrapper.network, "language", None)
    language_weights = set() if language is None else set(language.parameters())
    fully_shard(wrapper, mp_policy=policy, ignored_params=scalars | language_weights)
    return wrapper


def _average_gradient(parameter: Tensor) -> None:
    """Average the gradient of a parameter over processes.

    When several backward passes add up, the part that was averaged before is equal everywhere and stays as it is.
    """
    if parameter.grad is not None:
        dist.all_reduce(parameter.grad)
        parameter.grad /= current_world().size


def clip_gradients(weights: Sequence[Tensor], max_norm: float) -> None:
    """Scale all gradients so that their joint norm is at most `max_norm`; sharded and whole weights may be mixed."""
    sharded_weights = [weight for weight in weights if is_sharded(weight)]
    whole_weights = [weight for weight in weights if not is_sharded(weight)]
    norms = []
    for group in (sharded_weights, whole_weights):
        gradients = [weight.grad for weight in group if weight.grad is not None]
        if gradients:
            norms.append(gather_full_tensors(nn.utils.get_total_norm(gradients)))
    joint_norm = torch.stack(norms).norm() if len(norms) > 1 else norms[0]
    for group in (sharded_weights, whole_weights):
        nn.utils.clip_grads_with_norm_(group, max_norm, joint_norm)


def gather_full_tensors(tree: Any) -> Any:
    """Return a copy of a nest of dicts and lists in which every sharded tensor is whole; all processes must call it."""
    return tree_map(lambda leaf: leaf.full_tensor() if is_sharded(leaf) else leaf, tree)


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, sharded over the processes as `like` is; unchanged where `like` is not sharded."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(value.to(like.device), sharded.device_mesh, sharded.placements)


def is_sharded(value: Any) -> bool:
    """Return whether a value is a sharded tensor (DTensor), without importing that class, which takes seconds."""
    return hasattr(value, "full_tensor")


BUCKET_SIZE = 2**24
"""Number of gradient values that are averaged at once: 64 MB of float32."""


def average_gradients(wrapper: nn.Module) -> None:
    """Average over processes, in float32, the gradients that several backward passes added up under DDP's `no_sync`.

    Nothing is done for a single process, or under FSDP, which averages after every backward pass. All processes must
    have gradients of the same parameters.
    """
    if current_world().size == 1 or not isinstance(wrapper, nn.parallel.DistributedDataParallel):
        return
    bucket: list[Tensor] = []
    gradients = [parameter.grad for parameter in wrapper.parameters() if parameter.grad is not None]
    for number, gradient in enumerate(gradients):
        bucket.append(gradient)
        if number == len(gradients) - 1 or sum(map(torch.numel, bucket)) >= BUCKET_SIZE:
            _average_bucket(bucket)
            bucket = []


def _average_bucket(bucket: Sequence[Tensor]) -> None:
    """Replace gradients by their means over processes, with a single reduction."""
    flat = torch.cat([gradient.float().flatten() for gradient in bucket])
    dist.all_reduce(flat)
    sizes = [gradient.numel() for gradient in bucket]
    for gradient, total in zip(bucket, flat.split(sizes), strict=True):
        gradient.copy_(total.view_as(gradient) / current_world().size)
