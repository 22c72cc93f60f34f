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
    """The one door to a network in training: `through(work, ...)` is `work(network, ...)`.

    DDP and FSDP act on the forward of the module that they wrap, and a Q-Former has many entries; so all of a step
    happens inside this forward.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, work: Callable[..., Any], *args: Any) -> Any:
        return work(self.network, *args)


def wrap_with_ddp(wrapper: nn.Module, *, leaves_parameters_out: bool = False) -> nn.Module:
    """DDP: each process holds the whole network; gradients are averaged while the backward pass still runs.

    some_unused: whether a step leaves parameters out (the heads, while ITC trains alone); they keep no gradient.
    """
    devices = [torch.cuda.current_device()] if next(wrapper.parameters()).is_cuda else None
    return nn.parallel.DistributedDataParallel(
        wrapper, device_ids=devices, forward_sync_buffers=False, find_unused_parameters=leaves_parameters_out
    )


def shard_with_fsdp(wrapper: nn.Module, dtype: str) -> nn.Module:
    """FSDP2: each process keeps a part of every weight, of its gradient and of the optimizer's state in float32.

    The encoder's blocks are gathered one after the other; the rest, which a step enters many times, is gathered once a
    step. A frozen language model stays whole in each process. dtype: what is gathered is cast to; gradients are summed
    in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # seconds to import

    lowered = torch.bfloat16 if dtype == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=lowered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    vision = getattr(wrapper.network, "vision", None)
    for block in getattr(getattr(vision, "backbone", None), "blocks", ()):
        fully_shard(block, mp_policy=policy)
    scalars = {
        p for p in wrapper.parameters() if p.ndim == 0
    }  # FSDP takes none: each process keeps the temperature
    for scalar in scalars:
        scalar.register_post_accumulate_grad_hook(_average_gradient)
    language = getattr(
        wrapper.network, "language", None
    )  # frozen; its word embeddings are read outside of it
    kept = set() if language is None else set(language.parameters())
    fully_shard(wrapper, mp_policy=policy, ignored_params=scalars | kept)
    return wrapper


def _average_gradient(parameter: Tensor) -> None:
    if parameter.grad is not None:  # what was averaged before stays as it is
        dist.all_reduce(parameter.grad)
        parameter.grad /= current_world().size


def clip_gradients(weights: Sequence[Tensor], largest: float) -> None:
    """Scale all gradients so that their joint norm is at most `largest`; sharded and whole weights may be mixed."""
    kinds = [[w for w in weights if is_sharded(w) is sharded_] for sharded_ in (True, False)]
    norms = []
    for some in kinds:
        grads = [w.grad for w in some if w.grad is not None]
        if grads:
            norm = nn.utils.get_total_norm(grads)
            norms.append(gather_full_tensors(norm))
    joint = torch.stack(norms).norm() if len(norms) > 1 else norms[0]
    for some in kinds:
        nn.utils.clip_grads_with_norm_(some, largest, joint)


def gather_full_tensors(tree: Any) -> Any:
    """The same nest of dicts and lists with every sharded tensor made whole; all processes take part."""
    return tree_map(lambda one: one.full_tensor() if is_sharded(one) else one, tree)


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor laid out as another one is."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded_one: Any = like
    return distribute_tensor(value.to(like.device), sharded_one.device_mesh, sharded_one.placements)


def is_sharded(value: Any) -> bool:
    """Whether it is a DTensor; asked without importing them, which takes seconds."""
    return hasattr(value, "full_tensor")


BUCKET = 2**24
"""Numbers that are averaged in one go: 64 MB of float32."""


def average_gradients(wrapper: nn.Module) -> None:
    """Average over processes what several backward passes have added up under DDP's `no_sync`, in float32.

    Nothing to do alone, or under FSDP, which averages after every backward pass. All processes must have gradients of
    the same parameters.
    """
    if current_world().size == 1 or not isinstance(wrapper, nn.parallel.DistributedDataParallel):
        return
    bucket: list[Tensor] = []
    grads = [p.grad for p in wrapper.parameters() if p.grad is not None]
    for number, grad in enumerate(grads):
        bucket.append(grad)
        if number == len(grads) - 1 or sum(one.numel() for one in bucket) >= BUCKET:
            flat = torch.cat([one.float().flatten() for one in bucket])
            dist.all_reduce(flat)
            for one, mean in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                one.copy_(mean.view_as(one) / current_world().size)
            bucket = []
