"""A folder becomes a CaptionerSource, whether qseek or transformers wrote it; does a folder write, does it answer?

Ours is a checkpoint folder with the language model in `language/`, a transformers folder of its own. transformers keeps
both in one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.blip2.config import CaptionerConfig
from engine.checkpoints.checkpoint_sources import CaptionerSource, LanguageSource, encoder_tensors
from engine.checkpoints.filling import digest_of_tensors
from engine.checkpoints.key_names import TRANSFORMERS_CAPTIONER, renamed, split_language
from engine.checkpoints.language_folder import describe_language, language_tokenizer, read_language
from engine.checkpoints.layout import (
    CONFIG,
    LANGUAGE,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    read_json,
    read_tokenizer,
    with_dec,
)
from engine.checkpoints.published import PUBLISHED
from engine.checkpoints.tensors import StoredTensor, read_safetensors
from engine.checkpoints.transformers_folders import (
    TRANSFORMERS_NORM_EPS,
    encoder_configs,
    transformers_tensors,
)
from engine.errors import CheckpointError


def has_language(folder: Path) -> bool:
    """Whether a model folder is a generative one, by its config."""
    try:
        values = read_json(folder / CONFIG)
    except CheckpointError:
        return False
    if not isinstance(values, dict):
        return False
    if values.get("model_type") == "blip-2":
        return values.get("architectures") != ["Blip2ForImageTextRetrieval"]
    return "language" in values or values.get("model_type") == "instructblip"


def answers_questions(folder: Path) -> bool:
    """Whether a model folder is a generative one that answers, by its config alone."""
    if not has_language(folder):
        return False
    about = read_json(folder / CONFIG).get("language")
    return not isinstance(about, dict) or about.get("question", "") is not None


def read_captioner(folder: Path) -> CaptionerSource:
    """A generative checkpoint's folder, ours or transformers'. Raises CheckpointError saying what is missing or does
    not fit, and for a model without a language model."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is no model: it has no {CONFIG}.")
    values = read_json(folder / CONFIG)
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind in ("blip-2", "instructblip"):
        return _transformers(folder, values)
    if kind is not None:
        raise CheckpointError(f"{folder} holds a {kind!r} model, not BLIP-2.")
    if not isinstance(values, dict) or "language" not in values:
        raise no_language(folder)
    return _own(folder, values)


def no_language(folder: Path) -> CheckpointError:
    """What to say of a retrieval checkpoint that is asked to write."""
    return CheckpointError(
        f"{folder} has no language model: it searches, it does not write. These have one: {', '.join(PUBLISHED)}, and "
        "what `qseek train stage2` makes."
    )


def _own(folder: Path, values: dict[str, Any]) -> CaptionerSource:
    try:
        config = CaptionerConfig.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"In {folder}: {error}") from error
    tensors = read_safetensors(folder / WEIGHTS)
    language = read_language(folder / LANGUAGE)
    files: tuple[Path, ...] = (folder / CONFIG, folder / WEIGHTS, *language.files)
    if config.encoder:
        encoder, file = _shared_encoder(folder, config)
        tensors, files = {**tensors, **encoder}, (*files, file)
    if not config.language.reads_prompt:
        return CaptionerSource(config, tensors, language, None, files)
    tokenizer = read_tokenizer(folder / TOKENIZER)
    return CaptionerSource(config, tensors, language, tokenizer, (*files, folder / TOKENIZER))


def _shared_encoder(folder: Path, config: CaptionerConfig) -> tuple[dict[str, StoredTensor], Path]:
    """The image encoder's tensors of the model beside `folder` that config names, and their file."""
    place = folder.parent / config.encoder
    said = f"{folder} shares the image encoder of {place}"
    if not (place / WEIGHTS).is_file():
        raise CheckpointError(f"{said}, which has no {WEIGHTS}; keep the two folders beside each other.")
    tensors = encoder_tensors(read_safetensors(place / WEIGHTS))
    if digest_of_tensors(tensors) != config.encoder_digest:
        raise CheckpointError(f"{said}, and that is another one than it was trained with; get both anew.")
    return tensors, place / WEIGHTS


def _transformers(folder: Path, values: dict[str, Any]) -> CaptionerSource:
    from transformers import AutoConfig  # late: seconds; it fills in what the file leaves out

    tensors, weight_files = transformers_tensors(folder)
    rest, words = split_language(tensors)
    if not words:
        raise no_language(folder)
    try:
        theirs = AutoConfig.for_model(**values)
    except Exception as error:  # strict dataclasses raise their own kinds
        raise CheckpointError(f"{folder / CONFIG} is not a readable BLIP-2 config: {error}") from error
    vision, former = encoder_configs(theirs, folder)
    ours = renamed(rest, TRANSFORMERS_CAPTIONER)
    reads_prompt = "qformer.words.weight" in ours
    text, text_file = language_tokenizer(folder)
    about = describe_language(theirs.text_config, text, folder, reads_prompt=reads_prompt)
    config = CaptionerConfig(vision, former, about, TRANSFORMERS_NORM_EPS)
    files = (folder / CONFIG, *weight_files, text_file)
    language = LanguageSource(theirs.text_config, words, text, (text_file,))
    if not reads_prompt:
        return CaptionerSource(config, ours, language, None, files)
    place = folder / "qformer_tokenizer"
    path = place / (TOKENIZER if (place / TOKENIZER).is_file() else VOCABULARY)
    if not path.is_file():
        raise CheckpointError(
            f"{place} has no {TOKENIZER} and no {VOCABULARY}: its Q-Former reads the prompt; copy it again."
        )
    return CaptionerSource(config, ours, language, with_dec(read_tokenizer(path)), (*files, path))
