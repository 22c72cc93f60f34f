"""Prepare stage 1, stage 2 or fine-tuning: refuse contradictory settings, open the sets, set up the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.blip2.captioner import Captioner
from engine.blip2.config import VisionConfig
from engine.blip2.pixels import to_pixels
from engine.blip2.retriever import Retriever
from engine.checkpoints.saving import cast_floats
from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.captioned_sets import SetConfig, open_training_set, read_small_sets
from engine.datasets.picture_reading import load_pictures
from engine.errors import TrainingError
from engine.wording import count_text
from training.batches.batch_source import Batch, BatchSource
from training.batches.crops import make_random_crop
from training.batches.picture_stream import CheckCaption, Opener, PictureStream
from training.distributed.world import World
from training.distributed.wrapping import NetworkWrapper
from training.loop.optimizer import OptimConfig
from training.loop.run_checkpoint import flatten_settings

Say = Callable[[str], None]
"""A function that is called with a line of progress."""


class TrainingConfig(Protocol):
    """The settings that the configs of stage 1, stage 2 and fine-tuning share; `Stage1Config` says what they mean."""

    @property
    def sources(self) -> Sequence[SetConfig]: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def views(self) -> int: ...
    @property
    def train_encoder(self) -> bool: ...
    @property
    def recompute_encoder(self) -> bool: ...
    @property
    def smallest_crop(self) -> float: ...
    @property
    def compile(self) -> bool: ...
    @property
    def workers(self) -> int: ...


def check_common(config: TrainingConfig) -> None:
    """Check the settings that all stages share. Raises TrainingError for those that contradict each other."""
    if config.views < 0:
        raise TrainingError(f"views is {config.views}; use 0 to read pictures in every step, or 1 and more.")
    if config.optim.layer_decay != 1.0 and not config.train_encoder:
        raise TrainingError(
            f"`optim.layer_decay` is {config.optim.layer_decay:g}, but it acts on the encoder, which is "
            "frozen: set train_encoder, or set `optim.layer_decay` to 1."
        )
    if not 0 < config.smallest_crop <= 1:
        raise TrainingError(
            f"smallest_crop is {config.smallest_crop}; it is a share of the picture, above 0 to 1."
        )
    for source in config.sources if config.views else ():
        if source != type(source)(source.path):
            raise TrainingError(
                f"The set {source.path} has a weight, images or a split, and views is {config.views}: sets whose "
                "pictures are encoded once are read whole. Give its path alone, or set views to 0."
            )


def refuse_settings(config: TrainingConfig, names: Sequence[str], reason: str) -> None:
    """Raise TrainingError if one of these settings is not at its default, since it does not go with `views`.

    names: of the settings. reason: the sentence that says why.
    """
    defaults: dict[str, Any] = {field.name: field.default for field in fields(config)}  # type: ignore[arg-type]
    for name in names:
        if getattr(config, name) != defaults[name]:
            other = 0 if config.views else "1 or more"
            raise TrainingError(
                f"{name} is set and views is {config.views}: {reason} Set views to {other}, or leave {name} at "
                f"{defaults[name]}."
            )


def prepare_network(net: Retriever | Captioner, config: TrainingConfig) -> NetworkWrapper:
    """Put a network into training mode, freeze what stays as it is, and return it in a wrapper.

    A frozen encoder that reads pictures in every step is cast to bfloat16 where `optim.dtype` says so. A frozen encoder
    whose patches were made before training is left as it is.
    """
    net.requires_grad_(True)
    net.vision.requires_grad_(config.train_encoder)
    if isinstance(net, Captioner):
        net.language.requires_grad_(False)
    net.train()
    net.vision.train(config.train_encoder)
    if config.train_encoder and config.recompute_encoder:
        net.vision.backbone.set_grad_checkpointing(True)
    elif not config.train_encoder and not config.views and config.optim.dtype == "bfloat16":
        net.vision.to(torch.bfloat16)
    if config.compile:
        compile_parts(net)
    return NetworkWrapper(net)


def freeze_text_layers(net: Retriever, num_layers: int) -> None:
    """Freeze the word embeddings and what the text reads of the first layers: self-attention and feed-forward.

    num_layers: the number of these layers; with 0 nothing is frozen.
    """
    if not num_layers:
        return
    former = net.qformer
    for module in (former.words, former.positions, former.norm):
        module.requires_grad_(False)
    for layer in former.layers[:num_layers]:
        layer.attention.requires_grad_(False)
        layer.text_mlp.requires_grad_(False)


def compile_parts(net: Retriever | Captioner, backend: str = "inductor") -> None:
    """Compile the encoder, whose shapes never change, and the attentions and feed-forwards of the Q-Former."""
    net.vision.compile(backend=backend)
    for layer in net.qformer.layers:
        names = ("attention", "cross_attention", "query_mlp", "text_mlp")
        for module in (getattr(layer, name, None) for name in names):
            if module is not None:
                module.compile(backend=backend, dynamic=True)


def collect_fixed_settings(config: Any, names: Sequence[str], source: BatchSource) -> Mapping[str, Any]:
    """Return the values that must be unchanged when a stopped run goes on.

    These are the settings with the given names, and what the source says about its samples.
    """
    values = asdict(config)
    return flatten_settings({name: values[name] for name in names}) | dict(source.settings())


def take_images(batch: Batch, count: int, vision: VisionConfig, device: torch.device) -> Tensor:
    """Return the first `count` images of a batch on a device.

    Pictures become normalised pixels (B, 3, H, W); patches and feature maps stay as they are.
    """
    if isinstance(batch.images, Tensor):
        return batch.images[:count].to(device)
    return to_pixels(batch.images[:count], vision.mean, vision.std, device)


def read_whole_sets(
    config: TrainingConfig, data: Path, runs: Path, image_size: int, tell: Say
) -> tuple[np.ndarray, list[CaptionedPicture]]:
    """Read every picture of a config's sets; return them, uint8 (N, H, W, 3) of `image_size`, and their samples.

    Sets are looked for below data, then below runs. Raises DataError for a set that cannot be read.
    """
    samples = read_small_sets([source.path for source in config.sources], data, runs)
    pictures, samples, failures = load_pictures(samples, image_size)
    tell(
        f"{count_text(len(pictures), 'picture')}, {len(failures):,} unreadable; encoding "
        f"{count_text(config.views, 'view')} of each."
    )
    return pictures, samples


@contextmanager
def open_stream(
    config: TrainingConfig,
    data: Path,
    image_size: int,
    world: World,
    tell: Say,
    *,
    opener: Opener = open_training_set,
    check_caption: CheckCaption | None = None,
) -> Iterator[PictureStream]:
    """Open the sets of a config as a stream of pictures, and close it at the end.

    tell: is called with what the sets hold when they are opened, and with what was left out when they are closed.
    opener, check_caption: see `PictureStream`. Raises TrainingError for a batch that the processes cannot share, and
    DataError for a set that cannot be read.
    """
    if config.optim.batch % world.size:
        world.select_share(torch.empty(config.optim.batch))  # raises, and names the sizes that fit
    stream = PictureStream(
        config.sources,
        data,
        batch=config.optim.batch,
        seed=config.optim.seed,
        augment=make_random_crop(image_size, config.smallest_crop),
        world=world,
        workers=config.workers,
        opener=opener,
        check_caption=check_caption,
    )
    tell(f"{count_text(stream.count, 'sample')} in {count_text(len(stream.sets), 'set')}.")
    opening_report = stream.report()
    for line in opening_report:
        tell(line)
    try:
        yield stream
    finally:
        stream.close()
        for line in stream.report():
            if line not in opening_report:
                tell(line)


def copy_frozen_encoder(
    net: Retriever | Captioner, config: TrainingConfig, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return a copy of a frozen encoder's weights in the dtype of the checkpoint, and {} if the encoder is trained.

    Call it before `prepare_network`, which may cast the encoder to bfloat16.
    """
    if config.train_encoder:
        return {}
    weights = cast_floats(net.vision.state_dict(), dtype)
    return {f"vision.{name}": weight.clone() for name, weight in weights.items()}
