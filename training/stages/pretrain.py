"""Stage 1 on sets of any size, and retrieval fine-tuning: pictures are read as they come (BLIP-2, sections 3.2, 4.3).

The encoder is frozen, or trained on with layer-wise learning rates; the Q-Former starts from BERT or from a model.
Shapes: B pairs of this process, N of all, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from engine.blip2.config import Blip2Config
from engine.blip2.pixels import to_pixels
from engine.blip2.retriever import Retriever
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import make_net
from engine.checkpoints.layout import write_folder
from engine.checkpoints.retrieval_reading import read_folder
from engine.checkpoints.saving import cast_floats
from engine.datasets.captioned_sets import SourceConfig
from engine.errors import DataError, TrainingError
from training.batches.picture_stream import Pairs, Stream
from training.distributed.world import joined, world
from training.distributed.wrapping import full_tensors
from training.loop.optimizer import OptimConfig
from training.loop.random_draws import shared_draws
from training.loop.train_loop import train
from training.losses.cached_embeddings import Inputs, backward_in_chunks, encode
from training.losses.stage1_losses import normed, stage1_losses
from training.stages.bert_start import read_bert, start_from_bert
from training.stages.stage_setup import check_streamed, frozen_encoder, kept_settings, made_ready, open_stream
from training.stages.starts import at_size, find_start, load_encoder, same_encoder


@dataclass(frozen=True)
class PretrainConfig:
    """What stage 1 learns from, and how.

    sources: see `SourceConfig`. start: a model folder to train on from; else encoder, a safetensors file of the image
    encoder under timm's names, and bert, a Hugging Face BERT folder that also gives the Q-Former's sizes. picture_ids:
    whether pairs of one photo share ITC's targets and are never each other's negatives (COCO fine-tuning).
    train_encoder: whether it learns too; recompute_encoder: its activations are computed anew in the backward pass
    instead of kept (gradient checkpointing, arXiv:1604.06174). chunk: pairs of a process that are computed at a time
    (`cached_embeddings.py`), 0 = all. compile: torch.compile. smallest_crop: least share of a picture's area that a
    crop keeps. workers: threads that read and decode. Paths are below the data folder, or absolute.
    """

    model: Blip2Config
    sources: tuple[SourceConfig, ...]
    optim: OptimConfig
    start: str = ""
    encoder: str = ""
    bert: str = ""
    picture_ids: bool = False
    train_encoder: bool = False
    recompute_encoder: bool = False
    label_smoothing: float = 0.1
    smallest_crop: float = 0.5
    chunk: int = 0
    compile: bool = False
    workers: int = 8


class PretrainTask:
    """Stage 1 on a stream's batches."""

    def __init__(self, net: Retriever, tokenizer: TextTokenizer, stream: Stream, config: PretrainConfig):
        self.stream, self.tokenizer, self.config = stream, tokenizer, config
        self.net = self.model = net
        self.through: nn.Module = made_ready(net, config)
        self.settings: Mapping[str, Any] = kept_settings(config, stream)

    def losses(self, step: int) -> dict[str, Tensor]:
        return self.losses_of(step, self.config.optim.batch // world().size)

    def losses_of(self, step: int, count: int) -> dict[str, Tensor]:
        """Of the first `count` pairs of this process."""
        batch = self._inputs(self.stream[step], step, count)
        smoothing = self.config.label_smoothing
        if 0 < self.config.chunk < count:
            return backward_in_chunks(
                self.through,
                batch,
                self.config.chunk,
                dec_id=self.tokenizer.dec_id,
                label_smoothing=smoothing,
            )
        return self.through(self._losses, batch)

    def _losses(self, net: Retriever, batch: Inputs) -> dict[str, Tensor]:
        losses = stage1_losses(
            net, normed(net, encode(net, batch.pixels)), batch.ids, batch.mask, dec_id=self.tokenizer.dec_id,
            image_ids=batch.picture_ids, label_smoothing=self.config.label_smoothing, draws_2N=batch.draws,
        )  # fmt: skip
        return {"loss": losses.total, "itc": losses.itc, "itm": losses.itm, "itg": losses.itg}

    def _inputs(self, pairs: Pairs, step: int, count: int) -> Inputs:
        vision, here = self.config.model.vision, world()
        device = next(self.net.buffers(), next(self.net.parameters())).device
        draws = shared_draws(self.config.optim.seed, step)
        ids, mask, _ = self.tokenizer(pairs.captions[:count])
        return Inputs(
            to_pixels(pairs.pictures[:count], vision.mean, vision.std, device),
            ids.to(device),
            mask.to(device),
            torch.from_numpy(pairs.picture_ids[:count]).to(device) if self.config.picture_ids else None,
            torch.rand(2, count * here.size, generator=draws).to(device),
            int(torch.randint(2**40, (), generator=draws)) + (here.rank << 48),
        )


def run_pretrain(
    config: PretrainConfig,
    data: Path,
    runs: Path,
    output: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train by `config`, alone or as one of torchrun's processes; write the checkpoint folder `output/model`.

    runs: where `config.start` is looked for after the data folder (`NAME/model`), before the known models. Raises
    DataError, CheckpointError and TrainingError saying what is missing or does not fit.
    """
    check(config)
    with joined() as (here, device):
        tell = say if here.rank == 0 else (lambda line: None)
        with open_stream(config, data, config.model.vision.image_size, here, tell) as stream:
            net, tokenizer = start_model(config, data, runs)
            encoder = frozen_encoder(net, config, torch.float16)
            config = replace(config, model=net.config)
            task = PretrainTask(
                net.to(device), TextTokenizer(tokenizer, net.config.max_tokens), stream, config
            )
            train(task, config.optim, output / "all", say=tell)
        state = cast_floats(full_tensors(net.state_dict()), torch.float16)
        if here.rank == 0:
            write_folder(output / "model", {**state, **encoder}, tokenizer, net.config.to_dict())
            tell(f"wrote {output / 'model'}")


def check(config: PretrainConfig) -> None:
    """Raises TrainingError for settings that contradict each other."""
    if config.start and (config.bert or config.encoder):
        raise TrainingError("Set either start (a whole model) or encoder and bert (its parts), not both.")
    if not config.start and not (config.bert and config.encoder):
        missing = "encoder" if config.bert else "bert" if config.encoder else "start"
        raise TrainingError(
            f"{missing} is not set: stage 1 begins from a model folder (--set start=...), or from an image encoder's "
            "safetensors file and a BERT folder (--set encoder=... --set bert=...)."
        )
    check_streamed(config)
    if config.chunk == 1:
        raise TrainingError("chunk is 1; use 2 or more pairs, or 0 for the whole batch.")


def start_model(config: PretrainConfig, data: Path, runs: Path) -> tuple[Retriever, Tokenizer]:
    """The network as training finds it, and its tokenizer. See `PretrainConfig`."""
    torch.manual_seed(config.optim.seed)
    if config.start:
        return _from_folder(config.model, find_start(config.start, data, runs))
    bert = read_bert(data / config.bert, config.model.qformer)
    net = Retriever(replace(config.model, qformer=bert.shape))
    load_encoder(net, data / config.encoder)
    start_from_bert(net, bert)
    return net, bert.tokenizer


def _from_folder(model: Blip2Config, folder: Path) -> tuple[Retriever, Tokenizer]:
    """A model folder, its positions interpolated where the recipe reads larger pictures."""
    source = at_size(read_folder(folder), folder, model.vision.image_size)
    found = source.config
    differing = [part for part in ("qformer", "embed_dim") if getattr(found, part) != getattr(model, part)]
    if not same_encoder(found.vision, model.vision):
        differing.insert(0, "vision")
    if differing:
        shown = "; ".join(f"{p}: {getattr(found, p)}, not {getattr(model, p)}" for p in differing)
        raise DataError(f"{folder} is another architecture than the recipe's: {shown}.")
    source = replace(source, config=replace(found, max_tokens=model.max_tokens))
    return make_net(source, folder, torch.float32), source.tokenizer
