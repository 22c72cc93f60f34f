"""Networks without storage, and putting tensors into them one by one, so that there are never two copies in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from engine.checkpoints.tensors import StoredTensor
from engine.errors import CheckpointError


@contextmanager
def without_storage() -> Iterator[None]:
    """Every parameter that a module registers becomes one without storage: nothing is drawn that is then replaced."""

    def to_meta(
        module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None
    ) -> torch.nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def check_fits(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, StoredTensor], where: Path) -> None:
    """Raises CheckpointError naming missing, unknown and misshapen tensors. wanted: shapes by name."""
    if problems := misfits(wanted, found):
        raise CheckpointError(f"The weights in {where} do not fit the config.json: {problems}.")


def misfits(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, StoredTensor]) -> str:
    """What `check_fits` says of them, the first five; empty when all fit."""
    problems = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"unknown {name}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} is {found[name].shape}, should be {wanted[name]}"
        for name in sorted(found.keys() & wanted.keys())
        if found[name].shape != wanted[name]
    ]
    return "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")


def put_tensors(module: torch.nn.Module, tensors: Mapping[str, StoredTensor], dtype: torch.dtype) -> None:
    """Give an empty module these weights, each read and cast by itself. dtype: of the floating ones."""
    modules = dict(module.named_modules())
    for name, tensor in tensors.items():
        value = tensor.read()
        value = value.to(
            dtype if value.is_floating_point() else value.dtype, copy=True
        )  # out of the file, aligned
        owner, _, last = name.rpartition(".")
        if last in modules[owner]._parameters:
            modules[owner]._parameters[last] = torch.nn.Parameter(value.contiguous())
        else:
            modules[owner]._buffers[last] = value


def digest_of_tensors(tensors: Mapping[str, StoredTensor]) -> str:
    """Hex SHA-256 of names, types and values, whatever their order and file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].read().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_memory(num_bytes: int, where: Path) -> None:
    """Raises CheckpointError, before anything is loaded, when the weights do not fit into what is free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return  # not Linux: nothing to go by
    if num_bytes > free:
        raise CheckpointError(
            f"{where} needs {num_bytes / 2**30:.1f} GiB of memory for its weights, {free / 2**30:.1f} GiB are free; "
            "close other programs, or use a smaller model (`qseek models` lists them)."
        )
