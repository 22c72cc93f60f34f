"""What a run would do, without doing it: parameters, steps, memory.

Shapes: B pairs of a process, P patches, V vision width, Q queries, T tokens, D Q-Former width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.blip2.captioner import Captioner
from engine.blip2.config import Blip2Config, VisionConfig
from engine.blip2.retriever import Retriever
from engine.datasets.photo_numbers import PhotoSets
from engine.errors import DataError
from training.capfilt_config import CapfiltConfig
from training.language import TrainLanguageConfig, make_opt
from training.loop import OptimConfig
from training.stage1 import Stage1Config

GIB = 2**30


@dataclass(frozen=True)
class Part:
    """name: of a part of the model. trainable, frozen: numbers of parameters."""

    name: str
    trainable: int
    frozen: int


def parameter_table(net: nn.Module) -> list[Part]:
    """Every direct child of a network, and parameters of its own, in order."""
    parts = [
        Part(
            name,
            *(sum(p.numel() for p in child.parameters() if p.requires_grad is on) for on in (True, False)),
        )
        for name, child in net.named_children()
    ]
    parts += [
        Part(name, p.numel() * p.requires_grad, p.numel() * (not p.requires_grad))
        for name, p in net.named_parameters(recurse=False)
    ]
    return [part for part in parts if part.trainable or part.frozen]


def meta_net(model: Blip2Config, *, train_encoder: bool) -> Retriever:
    """The network without memory for its weights, what is trained marked as such."""
    with torch.device("meta"):
        net = Retriever(model)
    net.vision.requires_grad_(train_encoder)
    return net


def state_bytes(trainable: int, frozen: int, dtype: str) -> int:
    """Weights, gradients and AdamW's two moments; in bfloat16 also the float32 masters and their gradients."""
    if dtype == "bfloat16":
        return trainable * (2 + 2 + 4 + 4 + 8) + frozen * 2
    return trainable * (4 + 4 + 8) + frozen * 4


def activation_bytes(
    model: Blip2Config, batch: int, num_patches: int, dtype: str, *, train_encoder: bool, recompute: bool
) -> int:
    """An estimate of what is kept for the backward pass of B pairs.

    A transformer layer of width d and a heads keeps about s (34 d + 5 a s) bytes in 16 bit for s rows
    (arXiv:2205.05198, section 4.1). Texts count with the longest that the model reads.
    """
    double = 1 if dtype == "bfloat16" else 2

    former, vision = model.qformer, model.vision
    queries, tokens = former.num_queries, model.max_tokens
    # ITC reads queries and text apart, ITM three pairs, ITG the text once more.
    passes = [queries, tokens, *[queries + tokens] * 3, tokens]
    own = former.num_layers * sum(layer_bytes(rows, former.width, former.num_heads) for rows in passes)
    crossing = -(-former.num_layers // former.cross_attention_every)
    # Keys and values of the photo and of its two stand-ins, and the scores of four passes over it.
    own += crossing * num_patches * (3 * 2 * 2 * former.width + 4 * 5 * former.num_heads * queries)
    words = 3 * 4 * tokens * former.vocab_size // double  # ITG's logits, in float32
    seen = encoder_bytes(vision, num_patches, recompute=recompute) if train_encoder else 0
    return batch * double * (own + words + seen)


def layer_bytes(rows: int, width: int, heads: int) -> int:
    """What a transformer layer keeps of so many rows, in 16 bit."""
    return rows * (34 * width + 5 * heads * rows)


def encoder_bytes(vision: VisionConfig, num_patches: int, *, recompute: bool) -> int:
    """What a trained encoder keeps of a picture."""
    heads, depth = vision_heads(vision.timm_args, vision.num_channels)
    one = layer_bytes(num_patches, vision.num_channels, heads)
    kept = 2 * num_patches * vision.num_channels
    return depth * kept + one if recompute else depth * one


def vision_heads(timm_args: dict[str, Any], width: int) -> tuple[int, int]:
    """Heads and depth of a ViT: as its arguments say, else heads 64 wide (88 in ViT-g)."""
    return timm_args.get("num_heads", width // (88 if width == 1408 else 64)), timm_args.get("depth", 12)


def schedule_text(optim: OptimConfig) -> str:
    return f"warm-up {optim.warmup:,}; learning rate {optim.lr:g} to {optim.min_lr:g}; {optim.dtype}"


def describe_stage1(config: Stage1Config, processes: int = 1) -> Iterator[str]:
    """The lines of `--dry-run` for a small set: the run with all losses, and those before it."""
    yield from describe_plan(config.model, config.optim, processes=processes)
    for name, optim in (
        (f"ITC and the encoder's parts from {config.encoder_from} on", config.encoder_optim),
        ("ITC alone", config.itc_optim),
    ):
        if optim is not None:
            yield f"before it, {name}: {optim.steps:,} steps of {optim.batch:,} pairs; {schedule_text(optim)}"


def describe_language_model(config: TrainLanguageConfig) -> Iterator[str]:
    """Of a language model that is trained. Its memory is not estimated."""
    with torch.device("meta"):
        net = nn.ModuleDict({"language": make_opt(config, config.vocab_size)})
    yield from table_lines(net)
    optim = config.optim
    yield f"steps: {optim.steps:,} of {optim.batch:,} photos' captions; {schedule_text(optim)}"


def describe_capfilt(config: CapfiltConfig, data: Path, runs: Path) -> Iterator[str]:
    """What would be drawn, ranked and kept; of how many photos, where they are there."""
    try:
        count = f"{len(PhotoSets(config.pictures, data, runs)):,} photos"
    except DataError:
        count = "photos"
    yield (
        f"{count} of {', '.join(config.pictures)}: {config.per_photo} captions drawn of each by {config.captioner}, "
        f"ranked by {config.matcher}"
    )
    kept = f"kept: the best {config.keep}" + ("" if config.least is None else f" that score {config.least:g}")
    yield f"{kept}; the photos' own captions and labels: {config.originals}"
    if config.label_least is not None:
        yield f"labels of the teacher's, where its probability is at least {config.label_least:g}"


def describe_plan(
    model: Blip2Config, optim: OptimConfig, *, train_encoder: bool = False, recompute: bool = False, chunk: int = 0,
    processes: int = 1,
) -> Iterator[str]:  # fmt: skip
    """The lines of `--dry-run`."""
    net = meta_net(model, train_encoder=train_encoder)
    kept = activation_bytes(
        model, at_once(optim, chunk, processes), patches_of(net), optim.dtype, train_encoder=train_encoder,
        recompute=recompute,
    )  # fmt: skip
    return plan_lines(net, optim, kept, processes)


def at_once(optim: OptimConfig, chunk: int, processes: int) -> int:
    """Pairs whose activations a process holds at a time."""
    share = optim.batch // processes
    return min(chunk, share) if chunk else share


def plan_lines(net: nn.Module, optim: OptimConfig, kept: int, processes: int) -> Iterator[str]:
    """Parameters by part, steps, memory. kept: bytes of activations."""
    yield from table_lines(net)
    share = optim.batch // processes
    yield (
        f"steps: {optim.steps:,} of {optim.batch:,} pairs ({share:,} a process), {optim.steps * optim.batch:,} in all; "
        f"{schedule_text(optim)}"
    )
    parts = parameter_table(net)
    trainable, frozen = (sum(getattr(part, kind) for part in parts) for kind in ("trainable", "frozen"))
    whole = sum(part.frozen for part in parts if part.name == "language")  # FSDP leaves it as it is
    split = processes if optim.parallel == "fsdp" else 1
    fixed = state_bytes(trainable, frozen - whole, optim.dtype) / split + state_bytes(0, whole, optim.dtype)
    yield (
        f"memory of a process, estimated: {(fixed + kept) / GIB:.1f} GiB ({fixed / GIB:.1f} weights, gradients and "
        f"moments, {kept / GIB:.1f} activations)"
    )


def table_lines(net: nn.Module) -> Iterator[str]:
    """The parameter table."""
    parts = parameter_table(net)
    trainable, frozen = (sum(getattr(part, kind) for part in parts) for kind in ("trainable", "frozen"))
    width = max(len(part.name) for part in parts)
    yield f"{'part':{width}}  {'trainable':>13}  {'frozen':>13}"
    for part in [*parts, Part("all", trainable, frozen)]:
        yield f"{part.name:{width}}  {part.trainable:13,}  {part.frozen:13,}"


def patches_of(net: Retriever | Captioner) -> int:
    """P, from the shapes alone."""
    size = net.config.vision.image_size
    with torch.no_grad():
        return net.vision(torch.empty(1, 3, size, size, device="meta")).shape[1]
