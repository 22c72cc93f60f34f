"""What a run starts from: another run's model, a folder or a known name, read at the pixels that the recipe wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from torch import nn

from engine.blip2.config import EVA, CaptionerConfig, LanguageConfig, VisionConfig
from engine.blip2.retriever import Retriever
from engine.checkpoints.checkpoint_sources import CaptionerSource, LanguageSource, RetrieverSource
from engine.checkpoints.filling import misfits
from engine.checkpoints.position_grids import POSITIONS, at_image_size, grid_side
from engine.checkpoints.tensors import StoredTensor, read_safetensors, stored
from engine.checkpoints.transformers_export import EVA_GIANT
from engine.errors import CheckpointError, DataError
from engine.models.catalogue import find_model

AnySource = TypeVar("AnySource", RetrieverSource, CaptionerSource)
BACKBONE = "vision.backbone."
UNUSED_IN_ENCODER = ("head.", "norm.", "fc_norm.")


def find_start(name: str, data: Path, runs: Path) -> Path:
    """The folder DATA/NAME, the model of the run RUNS/NAME, or one that `qseek models` lists. Raises DataError."""
    places = [data / name, runs / name / "model"]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is not None:
        return folder
    try:
        return find_model(name)
    except CheckpointError as error:
        raise DataError(
            f"There is no model to start from: neither {places[0]} nor {places[1]} is a folder. {error}"
        ) from error


def resize_source(source: AnySource, where: Path, image_size: int) -> AnySource:
    """A source that reads pictures of so many pixels, its positions interpolated. Raises DataError where it cannot."""
    tensors = dict(source.tensors)
    try:
        vision = at_image_size(tensors, source.config.vision, image_size)
    except CheckpointError as error:
        raise DataError(f"{where}: {error}") from error
    return replace(source, config=replace(source.config, vision=vision), tensors=tensors)


def is_same_encoder(one: VisionConfig, other: VisionConfig) -> bool:
    """Whether they describe the same encoder: some spell out what timm's architecture says by itself."""
    return _spelt_out(one) == _spelt_out(other)


def _spelt_out(vision: VisionConfig) -> VisionConfig:
    return replace(vision, timm_args=EVA_GIANT | vision.timm_args) if vision.timm_name == EVA else vision


def load_encoder(net: Retriever, path: Path) -> None:
    """Strictly, but for what this encoder leaves out of timm's: the classifier, the last norm, the last blocks.

    Raises DataError naming what does not fit.
    """
    vision = net.config.vision
    wanted = {f"vision.{name}": tuple(value.shape) for name, value in net.vision.state_dict().items()}
    depth = len(getattr(net.vision.backbone, "blocks", ()))
    found = {
        BACKBONE + name: tensor
        for name, tensor in read_safetensors(path).items()
        if BACKBONE + name in wanted or not (name.startswith(UNUSED_IN_ENCODER) or _beyond(name, depth))
    }
    if POSITIONS in wanted and POSITIONS in found and (side := grid_side(found[POSITIONS].shape[1])):
        patch = vision.image_size // grid_side(wanted[POSITIONS][1])
        at_image_size(found, replace(vision, image_size=patch * side), vision.image_size)
    if problems := misfits(wanted, found):
        raise DataError(
            f"{path} is not the image encoder {vision.timm_name} at {vision.image_size} pixels: "
            f"{problems.replace(BACKBONE, '')}."
        )
    net.vision.load_state_dict(
        {name.removeprefix("vision."): tensor.read() for name, tensor in found.items()}
    )


def _beyond(name: str, depth: int) -> bool:
    parts: Sequence[str] = name.split(".")
    return parts[0] == "blocks" and parts[1].isdigit() and int(parts[1]) >= depth


def is_text_branch(name: str) -> bool:
    """Whether a tensor of a retrieval model's Q-Former serves its texts alone."""
    return name.startswith(("qformer.words.", "qformer.positions.")) or ".text_mlp." in name


def build_captioner_source(
    source: RetrieverSource, language: LanguageSource, about: LanguageConfig
) -> CaptionerSource:
    """A stage-1 model's encoder, queries and Q-Former before a language model, with a new projection, drawn now.

    Without its heads, and without its text branch unless the Q-Former reads the prompt.
    """
    config = CaptionerConfig(
        source.config.vision, source.config.qformer, about, source.config.vision_norm_eps
    )
    tensors: dict[str, StoredTensor] = {
        name: tensor
        for name, tensor in source.tensors.items()
        if name.startswith(("vision.", "vision_norm.", "qformer."))
        and (about.reads_prompt or not is_text_branch(name))
    }
    projection = nn.Linear(config.qformer.width, about.width)
    tensors |= {f"projection.{name}": stored(value) for name, value in projection.state_dict().items()}
    words = source.tokenizer if about.reads_prompt else None
    return CaptionerSource(config, tensors, language, words, language.files)
