"""Open what a run starts from: another run, a model folder, a BERT, an encoder's file; check that it fits the
recipe.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from engine.blip2.config import EVA, CaptionerConfig, LanguageConfig, VisionConfig
from engine.blip2.retriever import Retriever
from engine.checkpoints.building import make_net
from engine.checkpoints.checkpoint_sources import CaptionerSource, LanguageSource, RetrieverSource
from engine.checkpoints.encoder_packages import add_packaged_encoder
from engine.checkpoints.filling import POSITIONS, change_image_size, compute_grid_side, list_misfits
from engine.checkpoints.language_folder import read_language, read_language_config
from engine.checkpoints.retrieval_reading import read_folder
from engine.checkpoints.tensors import StoredTensor, as_stored, read_safetensors
from engine.checkpoints.transformers_export import EVA_GIANT
from engine.errors import CheckpointError, DataError, TrainingError
from engine.models.catalogue import find_model
from training.stages.bert_start import find_bert, read_bert, start_from_bert, widen_new_parts
from training.stages.distillation import ENCODER
from training.stages.stage1_config import Stage1Config
from training.stages.stage2_config import Stage2Config, WritingConfig, replace_image_size
from training.stages.text_half import TEXT_HALF, TOKENIZER, select_text_half

AnySource = TypeVar("AnySource", RetrieverSource, CaptionerSource)
BACKBONE = "vision.backbone."
UNUSED_IN_ENCODER = ("head.", "norm.", "fc_norm.")


def load_stage1_start(config: Stage1Config, data: Path, runs: Path) -> tuple[Retriever, Tokenizer]:
    """Return the network with which stage 1 begins, and its tokenizer; `Stage1Config` says from what they are made.

    Raises DataError and CheckpointError for a start that is missing or does not fit the recipe.
    """
    torch.manual_seed(config.optim.seed)
    if config.start:
        return _load_model_folder(config, find_start(config.start, data, runs))
    if config.text:
        return _load_earlier_runs(config, runs)
    bert = read_bert(find_bert(config.bert, data), config.model.qformer)
    net = Retriever(replace(config.model, qformer=bert.qformer))
    if config.model.vision.package:
        load_packaged_encoder(net)
    else:
        load_encoder(net, data / config.encoder)
    if config.fan_in_start:
        widen_new_parts(net)
    start_from_bert(net, bert)
    return net, bert.tokenizer


def _load_model_folder(config: Stage1Config, folder: Path) -> tuple[Retriever, Tokenizer]:
    """Load a retrieval model; its positions are interpolated where the recipe reads larger pictures."""
    recipe_model = config.model
    source = resize_source(read_folder(folder), folder, recipe_model.vision.image_size)
    model = source.config
    names = ("qformer", "embed_dim", "max_tokens") if config.views else ("qformer", "embed_dim")
    differing = [name for name in names if getattr(model, name) != getattr(recipe_model, name)]
    if not is_same_encoder(model.vision, recipe_model.vision):
        differing.insert(0, "vision")
    if differing:
        differences = "; ".join(
            f"{name}: {getattr(model, name)}, not {getattr(recipe_model, name)}" for name in differing
        )
        raise DataError(f"{folder} is another architecture than the recipe's: {differences}.")
    source = replace(source, config=replace(model, max_tokens=recipe_model.max_tokens))
    return make_net(source, folder, torch.float32), source.tokenizer


def _load_earlier_runs(config: Stage1Config, runs: Path) -> tuple[Retriever, Tokenizer]:
    """Build a new Q-Former around the image encoder and the text half that earlier runs trained."""
    encoder_path, text_path = runs / config.encoder / ENCODER, runs / config.text / TEXT_HALF
    for path in (encoder_path, text_path):
        if not path.is_file():
            raise DataError(
                f"{path} is not there; train it first (`qseek train distill`, `qseek train text`)."
            )
    net = Retriever(config.model)
    net.vision.load_state_dict(load_file(encoder_path))
    select_text_half(net).load_state_dict(load_file(text_path))
    # The queries' feed-forwards start as the text's (BLIP-2, section 3.1).
    for layer in net.qformer.query_layers:
        layer.query_mlp.load_state_dict(layer.text_mlp.state_dict())
    return net, Tokenizer.from_file(str(runs / config.text / TOKENIZER))


def open_stage2_start(
    config: Stage2Config, data: Path, runs: Path, language_folder: Path
) -> tuple[CaptionerSource, Path]:
    """Return what stage 2 starts from, and the folder of its stage-1 model.

    language_folder: a transformers folder of the language model, with its tokenizer. Raises DataError and
    CheckpointError for a start that is missing or cannot be read.
    """
    folder = find_start(config.start, data, runs)
    source = read_folder(folder)
    if config.image_size:
        source = resize_source(source, folder, config.image_size)
    torch.manual_seed(config.optim.seed)
    language = read_language(language_folder)
    language_config = read_language_config(
        language.config, language.tokenizer, language_folder, reads_prompt=config.reads_prompt
    )
    language_config = replace(
        language_config, question=config.question, repetition_penalty=config.repetition_penalty
    )
    return build_captioner_source(source, language, language_config), folder


def check_start(config: WritingConfig, source: CaptionerSource, folder: Path) -> None:
    """Check that a captioner can start from a source.

    folder: where the source was read, for messages. Raises DataError if its architecture is not the recipe's, and
    TrainingError for settings by which its language model cannot learn.
    """
    check_language(config, source.config.language)
    if config.model is None:
        return
    recipe_model, model = config.model, source.config
    image_size = model.vision.image_size
    vision = replace_image_size(model.vision, image_size)
    recipe_vision = replace_image_size(recipe_model.vision, image_size)
    recipe_qformer = replace(
        recipe_model.qformer,
        vocab_size=model.qformer.vocab_size,
        max_positions=model.qformer.max_positions,
    )
    differing = [] if is_same_encoder(vision, recipe_vision) else ["vision"]
    differing += [] if model.qformer == recipe_qformer else ["qformer"]
    language = source.language.config
    differing += [
        f"the language model's {name} ({getattr(language, name, None)}, not {value})"
        for name, value in recipe_model.language.items()
        if getattr(language, name, None) != value
    ]
    if differing:
        raise DataError(
            f"{folder} is another architecture than the recipe's: {', '.join(differing)}. `--set model=none` takes it "
            "as it is."
        )


def check_language(config: WritingConfig, language: LanguageConfig) -> None:
    """Check that a language model can learn by the settings. Raises TrainingError if it cannot."""
    if language.reads_prompt and not all(prompt.strip() for prompt in config.prompts):
        raise TrainingError("The Q-Former reads the prompt, and one of the recipe's prompts is empty.")
    if config.prefix_share and not language.encoder_decoder:
        raise TrainingError(
            f"prefix_share is {config.prefix_share}, but the language model is a decoder, which learns whole captions "
            "and answers; leave it at 0."
        )


def find_start(name: str, data: Path, runs: Path) -> Path:
    """Return the folder of the model that a run starts from.

    This is the folder DATA/NAME, or the model of the run RUNS/NAME, or a model that `qseek models` lists. Raises
    DataError if there is none of these.
    """
    candidates = [data / name, runs / name / "model"]
    folder = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if folder is not None:
        return folder
    try:
        return find_model(name)
    except CheckpointError as error:
        raise DataError(
            f"There is no model to start from: neither {candidates[0]} nor {candidates[1]} is a folder. {error}"
        ) from error


def resize_source(source: AnySource, folder: Path, image_size: int) -> AnySource:
    """Return a source that reads pictures of `image_size` pixels; its position embeddings are interpolated.

    folder: where the source was read, for messages. Raises DataError if the encoder cannot read such pictures.
    """
    tensors = dict(source.tensors)
    try:
        vision = change_image_size(tensors, source.config.vision, image_size)
    except CheckpointError as error:
        raise DataError(f"{folder}: {error}") from error
    return replace(source, config=replace(source.config, vision=vision), tensors=tensors)


def is_same_encoder(vision: VisionConfig, other: VisionConfig) -> bool:
    """Return whether two configs mean the same image encoder.

    Some configs of ViT-g spell out arguments that timm's architecture has by default; that makes no difference.
    """
    return _spell_out(vision) == _spell_out(other)


def _spell_out(vision: VisionConfig) -> VisionConfig:
    """Return the config of a ViT-g with all of timm's arguments, and any other config unchanged."""
    return replace(vision, timm_args=EVA_GIANT | vision.timm_args) if vision.timm_name == EVA else vision


def load_encoder(net: Retriever, path: Path) -> None:
    """Load the image encoder of a network from a safetensors file with timm's names.

    The file may hold what this encoder leaves out of timm's: the classifier, the last norm, the last blocks. Everything
    else must fit; position embeddings are interpolated to the network's pixels. Raises DataError naming what does not
    fit.
    """
    vision = net.config.vision
    shapes = {f"vision.{name}": tuple(value.shape) for name, value in net.vision.state_dict().items()}
    depth = len(getattr(net.vision.backbone, "blocks", ()))
    tensors = {
        BACKBONE + name: tensor
        for name, tensor in read_safetensors(path).items()
        if BACKBONE + name in shapes
        or not (name.startswith(UNUSED_IN_ENCODER) or _is_block_beyond(name, depth))
    }
    if (
        POSITIONS in shapes
        and POSITIONS in tensors
        and (side := compute_grid_side(tensors[POSITIONS].shape[1]))
    ):
        patch_size = vision.image_size // compute_grid_side(shapes[POSITIONS][1])
        change_image_size(tensors, replace(vision, image_size=patch_size * side), vision.image_size)
    if problems := list_misfits(shapes, tensors):
        raise DataError(
            f"{path} is not the image encoder {vision.timm_name} at {vision.image_size} pixels: "
            f"{problems.replace(BACKBONE, '')}."
        )
    net.vision.load_state_dict(
        {name.removeprefix("vision."): tensor.read() for name, tensor in tensors.items()}
    )


def load_packaged_encoder(net: Retriever) -> None:
    """Load the image encoder of a network from the package that its config names; see `encoder_packages`."""
    tensors = add_packaged_encoder(net.config.vision, {}, Path("this recipe"))
    net.vision.load_state_dict(
        {name.removeprefix("vision."): tensor.read() for name, tensor in tensors.items()}
    )


def _is_block_beyond(name: str, depth: int) -> bool:
    """Return whether a tensor belongs to a block of timm's ViT whose number is `depth` or more."""
    parts = name.split(".")
    return parts[0] == "blocks" and parts[1].isdigit() and int(parts[1]) >= depth


def is_text_branch(name: str) -> bool:
    """Return whether only texts use a tensor of a retrieval model's Q-Former."""
    return name.startswith(("qformer.words.", "qformer.positions.")) or ".text_mlp." in name


def build_captioner_source(
    source: RetrieverSource, language: LanguageSource, language_config: LanguageConfig
) -> CaptionerSource:
    """Put a stage-1 model's encoder, queries and Q-Former before a language model, with a new projection.

    The projection's weights are drawn now from torch's global generator. The heads are left out, and so is the text
    branch unless the Q-Former reads the prompt.
    """
    config = CaptionerConfig(
        source.config.vision, source.config.qformer, language_config, source.config.vision_norm_eps
    )
    tensors: dict[str, StoredTensor] = {
        name: tensor
        for name, tensor in source.tensors.items()
        if name.startswith(("vision.", "vision_norm.", "qformer."))
        and (language_config.reads_prompt or not is_text_branch(name))
    }
    projection = nn.Linear(config.qformer.width, language_config.width)
    tensors |= {f"projection.{name}": as_stored(value) for name, value in projection.state_dict().items()}
    tokenizer = source.tokenizer if language_config.reads_prompt else None
    return CaptionerSource(config, tensors, language, tokenizer, language.files)
