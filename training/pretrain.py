"""Stage 1 on sets of any size, and retrieval fine-tuning: pictures are read as they come (BLIP-2, sections 3.2, 4.3).

The encoder is frozen, or trained on with layer-wise learning rates; the Q-Former starts from BERT or from a model.
Shapes: B pairs of this process, N of all, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from engine.blip2.checkpoint import cast_floats, find_model, make_net, write_folder
from engine.blip2.config import Blip2Config
from engine.blip2.convert import resized
from engine.blip2.preprocess import TextTokenizer, to_pixels
from engine.blip2.retriever import Retriever
from engine.blip2.sources import read_folder, read_safetensors
from engine.errors import CheckpointError, DataError, TrainingError
from training.bert import read_bert, start_from_bert
from training.chunks import Inputs, backward_in_chunks, encode
from training.distributed import Through, full_tensors, joined, world
from training.loop import OptimConfig, shared_draws, train
from training.objectives import normed, stage1_losses
from training.settings import flat_settings
from training.sources import SourceConfig
from training.stream import Pairs, Stream, random_crop

UNUSED_IN_ENCODER = ("head.", "norm.", "fc_norm.")


@dataclass(frozen=True)
class PretrainConfig:
    """What stage 1 learns from, and how.

    sources: see `SourceConfig`. start: a model folder to train on from; else encoder, a safetensors file of the image
    encoder under timm's names, and bert, a Hugging Face BERT folder that also gives the Q-Former's sizes. picture_ids:
    whether pairs of one photo share ITC's targets and are never each other's negatives (COCO fine-tuning).
    train_encoder: whether it learns too; recompute_encoder: its activations are computed anew in the backward pass
    instead of kept (gradient checkpointing, arXiv:1604.06174). chunk: pairs of a process that are computed at a time
    (`chunks.py`), 0 = all. compile: torch.compile. smallest_crop: least share of a picture's area that a crop keeps.
    workers: threads that read and decode. Paths are below the data folder, or absolute.
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


FREE = {"optim", "sources", "recompute_encoder", "compile", "workers", "chunk"}
"""Of `PretrainConfig`: what a resumed run may change, or what is compared elsewhere."""


class PretrainTask:
    """Stage 1 on a stream's batches."""

    def __init__(self, net: Retriever, tokenizer: TextTokenizer, stream: Stream, config: PretrainConfig):
        self.stream, self.tokenizer, self.config = stream, tokenizer, config
        self.net = net
        net.requires_grad_(True)
        net.vision.requires_grad_(config.train_encoder)
        self.model = net.train()
        net.vision.train(config.train_encoder)
        if config.train_encoder and config.recompute_encoder:
            net.vision.backbone.set_grad_checkpointing(True)
        elif not config.train_encoder and config.optim.dtype == "bfloat16":
            net.vision.to(torch.bfloat16)
        if config.compile:
            compile_parts(net)
        self.through: nn.Module = Through(net)
        kept = {name: value for name, value in asdict(config).items() if name not in FREE}
        self.settings: Mapping[str, Any] = flat_settings(kept) | stream.settings()

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


def compile_parts(net: Retriever, backend: str = "inductor") -> None:
    """Compile what repeats: the encoder, whose shapes never change, and the Q-Former's attentions and feed-forwards."""
    net.vision.compile(backend=backend)
    for layer in net.qformer.layers:
        parts = (layer.attention, layer.cross_attention, layer.query_mlp, layer.text_mlp)
        for part in parts:
            if part is not None:
                part.compile(backend=backend, dynamic=True)


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
        if config.optim.batch % here.size:
            here.share(torch.empty(config.optim.batch))  # raises, with the sizes that fit
        augment = random_crop(config.model.vision.image_size, config.smallest_crop)
        stream = Stream(
            config.sources, data, batch=config.optim.batch, seed=config.optim.seed, augment=augment, here=here,
            workers=config.workers,
        )  # fmt: skip
        tell(f"{stream.count:,} samples in {len(stream.sources)} sources")
        for line in stream.report():
            tell(line)
        net, tokenizer = start_model(config, data, runs)
        config = replace(config, model=net.config)
        task = PretrainTask(net.to(device), TextTokenizer(tokenizer, net.config.max_tokens), stream, config)
        try:
            train(task, config.optim, output / "all", say=tell)
        finally:
            stream.close()
            for line in stream.report():
                tell(line)
        state = full_tensors(net.state_dict())
        if here.rank == 0:
            write_folder(output / "model", cast_floats(state, torch.float16), tokenizer, net.config.to_dict())
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
    if config.optim.layer_decay != 1.0 and not config.train_encoder:
        raise TrainingError(
            "optim.layer_decay acts on the encoder, which is frozen: set train_encoder, or it to 1."
        )
    if config.chunk == 1:
        raise TrainingError("chunk is 1; use 2 or more pairs, or 0 for the whole batch.")


def start_model(config: PretrainConfig, data: Path, runs: Path) -> tuple[Retriever, Tokenizer]:
    """The network as training finds it, and its tokenizer. See `PretrainConfig`."""
    torch.manual_seed(config.optim.seed)
    if config.start:
        places = [data / config.start, runs / config.start / "model"]
        folder = next((place for place in places if place.is_dir()), None)
        return _from_folder(config.model, folder or _model_called(config.start, places))
    bert = read_bert(data / config.bert, config.model.qformer)
    net = Retriever(replace(config.model, qformer=bert.shape))
    _load_encoder(net, data / config.encoder)
    start_from_bert(net, bert)
    return net, bert.tokenizer


def _model_called(name: str, places: Sequence[Path]) -> Path:
    """A model that `qseek models` lists."""
    try:
        return find_model(name)
    except CheckpointError as error:
        raise DataError(
            f"There is no model to start from: neither {places[0]} nor {places[1]} is a folder, and no model is called "
            f"{name!r}."
        ) from error


def _from_folder(model: Blip2Config, folder: Path) -> tuple[Retriever, Tokenizer]:
    """A model folder, its positions interpolated where the recipe reads larger pictures."""
    source = read_folder(folder)
    vision, wanted = source.config.vision, model.vision
    if vision.image_size != wanted.image_size:
        name = "vision.backbone.pos_embed"
        if name not in source.tensors or vision.timm_args.get("img_size") is None:
            raise DataError(
                f"{folder} reads pictures of {vision.image_size} pixels, the recipe {wanted.image_size}, and its "
                "encoder has no positions to interpolate."
            )
        side = _side(wanted)
        positions = resized(source.tensors[name], side, align_corners="quickgelu" in vision.timm_name)
        args = vision.timm_args | {"img_size": wanted.image_size}
        vision = replace(vision, image_size=wanted.image_size, timm_args=args)
        source = replace(
            source,
            config=replace(source.config, vision=vision),
            tensors={**source.tensors, name: positions},
        )
    differing = [
        part
        for part in ("vision", "qformer", "embed_dim")
        if getattr(source.config, part) != getattr(model, part)
    ]
    if differing:
        shown = "; ".join(f"{p}: {getattr(source.config, p)}, not {getattr(model, p)}" for p in differing)
        raise DataError(f"{folder} is another architecture than the recipe's: {shown}.")
    source = replace(source, config=replace(source.config, max_tokens=model.max_tokens))
    return make_net(source, folder, torch.float32), source.tokenizer


def _side(vision: Any) -> int:
    """Patches along one side."""
    patch = vision.timm_args.get("patch_size", 14)
    if vision.image_size % patch:
        raise DataError(f"{vision.image_size} pixels are not a multiple of the encoder's patches of {patch}.")
    return vision.image_size // patch


def _load_encoder(net: Retriever, path: Path) -> None:
    """Strictly, but for what this encoder leaves out of timm's: the classifier, the last norm, the last blocks."""
    own = net.vision.backbone.state_dict()
    found = read_safetensors(path)
    depth = len(getattr(net.vision.backbone, "blocks", ()))
    kept = {
        name: tensor
        for name, tensor in found.items()
        if name in own or not (name.startswith(UNUSED_IN_ENCODER) or _beyond(name, depth))
    }
    problems = [f"missing {name}" for name in sorted(own.keys() - kept.keys())]
    problems += [f"unknown {name}" for name in sorted(kept.keys() - own.keys())]
    size = net.config.vision.image_size
    if not problems and "pos_embed" in kept and kept["pos_embed"].shape != tuple(own["pos_embed"].shape):
        clip = "quickgelu" in net.config.vision.timm_name
        kept["pos_embed"] = resized(kept["pos_embed"], _side(net.config.vision), align_corners=clip)
    problems += [
        f"{name} is {tensor.shape}, should be {tuple(own[name].shape)}"
        for name, tensor in kept.items()
        if name in own and tensor.shape != tuple(own[name].shape)
    ]
    if problems:
        raise DataError(
            f"{path} is not the image encoder {net.config.vision.timm_name} at {size} pixels: "
            f"{'; '.join(problems[:5])}."
        )
    net.vision.backbone.load_state_dict({name: tensor.read() for name, tensor in kept.items()})


def _beyond(name: str, depth: int) -> bool:
    parts = name.split(".")
    return parts[0] == "blocks" and parts[1].isdigit() and int(parts[1]) >= depth
