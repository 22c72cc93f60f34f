"""What training on a stream takes, whatever is learned: the network made ready, the opened stream, contradictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from engine.blip2.captioner import Captioner
from engine.blip2.retriever import Retriever
from engine.checkpoints.saving import cast_floats
from engine.datasets.captioned_sets import SetConfig, open_source
from engine.errors import TrainingError
from training.batches.crops import random_crop
from training.batches.picture_stream import Opener, Stream, Usable
from training.distributed.world import World
from training.distributed.wrapping import Through
from training.loop.optimizer import OptimConfig
from training.loop.run_checkpoint import flat_settings

Say = Callable[[str], None]


class Streamed(Protocol):
    """What such a config has, whatever else; see `PretrainConfig`."""

    @property
    def sources(self) -> Sequence[SetConfig]: ...
    @property
    def optim(self) -> OptimConfig: ...
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


FREE = {"optim", "sources", "recompute_encoder", "compile", "workers", "chunk"}
"""Of such configs: what a resumed run may change, or what is compared elsewhere."""


def check_streamed(config: Streamed) -> None:
    """Raises TrainingError for settings that contradict each other."""
    if config.optim.layer_decay != 1.0 and not config.train_encoder:
        raise TrainingError(
            "optim.layer_decay acts on the encoder, which is frozen: set train_encoder, or it to 1."
        )
    if not 0 < config.smallest_crop <= 1:
        raise TrainingError(
            f"smallest_crop is {config.smallest_crop}; it is a share of the area, above 0 to 1."
        )


def made_ready(net: Retriever | Captioner, config: Streamed) -> Through:
    """Training mode, encoder and language model as they are to be; -> the door to the network."""
    net.requires_grad_(True)
    net.vision.requires_grad_(config.train_encoder)
    if isinstance(net, Captioner):
        net.language.requires_grad_(False)
    net.train()
    net.vision.train(config.train_encoder)
    if config.train_encoder and config.recompute_encoder:
        net.vision.backbone.set_grad_checkpointing(True)
    elif not config.train_encoder and config.optim.dtype == "bfloat16":
        net.vision.to(torch.bfloat16)
    if config.compile:
        compile_parts(net)
    return Through(net)


def compile_parts(net: Retriever | Captioner, backend: str = "inductor") -> None:
    """Compile what repeats: the encoder, whose shapes never change, and the Q-Former's attentions and feed-forwards."""
    net.vision.compile(backend=backend)
    for layer in net.qformer.layers:
        names = ("attention", "cross_attention", "query_mlp", "text_mlp")
        for part in (getattr(layer, name, None) for name in names):
            if part is not None:
                part.compile(backend=backend, dynamic=True)


def kept_settings(config: Any, stream: Stream, free: set[str] = FREE) -> Mapping[str, Any]:
    """What a resumed run must share: the config but for `free`, and which samples lie where."""
    kept = {name: value for name, value in asdict(config).items() if name not in free}
    return flat_settings(kept) | stream.settings()


@contextmanager
def open_stream(
    config: Streamed, data: Path, image_size: int, here: World, tell: Say, *, opener: Opener = open_source,
    usable: Usable | None = None,
) -> Iterator[Stream]:  # fmt: skip
    """The stream of a config's sources, told of when it opens and what it left out when it closes.

    Raises TrainingError for a batch that the processes cannot share, DataError for a source that cannot be read.
    """
    if config.optim.batch % here.size:
        here.share(torch.empty(config.optim.batch))  # raises, with the sizes that fit
    stream = Stream(
        config.sources, data, batch=config.optim.batch, seed=config.optim.seed,
        augment=random_crop(image_size, config.smallest_crop), here=here, workers=config.workers, opener=opener,
        usable=usable,
    )  # fmt: skip
    tell(f"{stream.count:,} samples in {len(stream.sources)} sources")
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


def frozen_encoder(
    net: Retriever | Captioner, config: Streamed, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """A frozen encoder's weights as they are before `made_ready`, in the dtype of the checkpoint: training reads it in
    bfloat16. Nothing where it is trained."""
    if config.train_encoder:
        return {}
    return {f"vision.{name}": t.clone() for name, t in cast_floats(net.vision.state_dict(), dtype).items()}
