"""What stage 1, stage 2 and fine-tuning share: prepare the network, open the sets, refuse contradictory settings."""

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
from training.batches.batch_source import Batch, BatchSource
from training.batches.crops import make_random_crop
from training.batches.picture_stream import CheckCaption, Opener, PictureStream
from training.distributed.world import World
from training.distributed.wrapping import NetworkWrapper
from training.loop.optimizer import OptimConfig
from training.loop.run_checkpoint import flatten_settings

Say = Callable[[str], None]


class TrainingConfig(Protocol):
    """What a config of stage 1 or 2, or of fine-tuning, has in any case; see `Stage1Config`."""

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
    """Raises TrainingError for settings that contradict each other."""
    if config.views < 0:
        raise TrainingError(f"views is {config.views}; use 0 to read pictures in every step, or 1 and more.")
    if config.optim.layer_decay != 1.0 and not config.train_encoder:
        raise TrainingError(
            "optim.layer_decay acts on the encoder, which is frozen: set train_encoder, or it to 1."
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
    """Raise TrainingError for the first of these settings that is not at its default: it does not go with `views`."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(config)}  # type: ignore[arg-type]
    for name in names:
        if getattr(config, name) != defaults[name]:
            other = 0 if config.views else "1 or more"
            raise TrainingError(
                f"{name} is set and views is {config.views}: {reason} Set views to {other}, or leave {name} at "
                f"{defaults[name]}."
            )


def prepare_network(net: Retriever | Captioner, config: TrainingConfig) -> NetworkWrapper:
    """Put the network into training mode, freeze what stays as it is, and return the door to it.

    An encoder that reads pictures in every step without learning is cast as `optim.dtype` says; one whose patches were
    made before is left as it is.
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


def compile_parts(net: Retriever | Captioner, backend: str = "inductor") -> None:
    """Compile what repeats: the encoder, whose shapes never change, and the Q-Former's attentions and feed-forwards."""
    net.vision.compile(backend=backend)
    for layer in net.qformer.layers:
        names = ("attention", "cross_attention", "query_mlp", "text_mlp")
        for part in (getattr(layer, name, None) for name in names):
            if part is not None:
                part.compile(backend=backend, dynamic=True)


def collect_fixed_settings(config: Any, names: Sequence[str], source: BatchSource) -> Mapping[str, Any]:
    """Return what a resumed run must share: the settings of these names, and which samples the source holds."""
    values = asdict(config)
    return flatten_settings({name: values[name] for name in names}) | dict(source.settings())


def take_images(batch: Batch, count: int, vision: VisionConfig, device: torch.device) -> Tensor:
    """Return the first `count` images of a batch on a device: pictures as normalised pixels, others as they are."""
    if isinstance(batch.images, Tensor):
        return batch.images[:count].to(device)
    return to_pixels(batch.images[:count], vision.mean, vision.std, device)


def read_whole_sets(
    config: TrainingConfig, data: Path, runs: Path, image_size: int, tell: Say
) -> tuple[np.ndarray, list[CaptionedPicture]]:
    """Read every picture of a config's sets -> uint8 (N, H, W, 3) of image_size, and the samples they belong to.

    Sets are looked for below data, then below runs. Raises DataError for one that cannot be read.
    """
    samples = read_small_sets([source.path for source in config.sources], data, runs)
    pictures, samples, failures = load_pictures(samples, image_size)
    tell(f"{len(pictures)} pictures, {len(failures)} unreadable; encoding {config.views} views of each")
    return pictures, samples


@contextmanager
def open_stream(
    config: TrainingConfig, data: Path, image_size: int, world: World, tell: Say, *, opener: Opener = open_training_set,
    check_caption: CheckCaption | None = None,
) -> Iterator[PictureStream]:  # fmt: skip
    """The stream of a config's sources, told of when it opens and what it left out when it closes.

    Raises TrainingError for a batch that the processes cannot share, DataError for a source that cannot be read.
    """
    if config.optim.batch % world.size:
        world.select_share(torch.empty(config.optim.batch))  # raises, with the sizes that fit
    stream = PictureStream(
        config.sources, data, batch=config.optim.batch, seed=config.optim.seed,
        augment=make_random_crop(image_size, config.smallest_crop), world=world, workers=config.workers, opener=opener,
        check_caption=check_caption,
    )  # fmt: skip
    tell(f"{stream.count:,} samples in {len(stream.sets)} sources")
    told = stream.report()
    for line in told:
        tell(line)
    try:
        yield stream
    finally:
        stream.close()
        for line in stream.report():
            if line not in told:
                tell(line)


def copy_frozen_encoder(
    net: Retriever | Captioner, config: TrainingConfig, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return a frozen encoder's weights in the dtype of the checkpoint, as they are before `prepare_network`, since
    training reads them in bfloat16. Return nothing where the encoder is trained."""
    if config.train_encoder:
        return {}
    return {f"vision.{name}": t.clone() for name, t in cast_floats(net.vision.state_dict(), dtype).items()}
