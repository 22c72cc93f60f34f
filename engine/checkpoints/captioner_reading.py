"""Read the folder of a captioner as a CaptionerSource, whether qseek or transformers wrote it.

A folder of qseek has the language model in `language/`, which is a transformers folder. transformers keeps all in one
folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.blip2.config import CaptionerConfig
from engine.checkpoints.checkpoint_sources import CaptionerSource, LanguageSource, select_encoder_tensors
from engine.checkpoints.encoder_packages import add_packaged_encoder
from engine.checkpoints.filling import compute_tensor_digest
from engine.checkpoints.key_names import TRANSFORMERS_CAPTIONER, rename_tensors, split_language
from engine.checkpoints.language_folder import read_language, read_language_config, read_language_tokenizer
from engine.checkpoints.layout import (
    CONFIG,
    LANGUAGE,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    add_dec_token,
    not_a_model_folder_error,
    read_json,
    read_tokenizer,
)
from engine.checkpoints.published import PUBLISHED
from engine.checkpoints.retrieval_reading import read_folder
from engine.checkpoints.tensors import StoredTensor, read_safetensors
from engine.checkpoints.transformers_folders import (
    TRANSFORMERS_NORM_EPS,
    read_encoder_configs,
    read_transformers_tensors,
)
from engine.errors import CheckpointError


def has_language(folder: Path) -> bool:
    """Return whether a model folder has a language model, by its config alone."""
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
    """Return whether a model folder has a language model that answers questions, by its config alone."""
    if not has_language(folder):
        return False
    language = read_json(folder / CONFIG).get("language")
    return not isinstance(language, dict) or language.get("question", "") is not None


def read_captioner(folder: Path) -> CaptionerSource:
    """Open the folder of a captioner, in the layout of qseek or transformers.

    Raises CheckpointError that says what is missing or does not fit, and for a model without a language model.
    """
    if not (folder / CONFIG).is_file():
        raise not_a_model_folder_error(folder)
    values = read_json(folder / CONFIG)
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind in ("blip-2", "instructblip"):
        return _read_transformers_captioner(folder, values)
    if kind is not None:
        raise CheckpointError(f"{folder} holds a model of type {kind!r}, which is not BLIP-2.")
    if not isinstance(values, dict) or "language" not in values:
        raise no_language_error(folder)
    return _read_qseek_captioner(folder, values)


def no_language_error(folder: Path) -> CheckpointError:
    """Return the error for a retrieval checkpoint that is asked to write with a language model."""
    return CheckpointError(
        f"{folder} has no language model, so it searches and does not write. These have one: {', '.join(PUBLISHED)}, "
        "and every model of `qseek train stage2`."
    )


def _read_qseek_captioner(folder: Path, values: dict[str, Any]) -> CaptionerSource:
    try:
        config = CaptionerConfig.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"In {folder}: {error}") from error
    stored = read_safetensors(folder / WEIGHTS)
    tensors = add_packaged_encoder(config.vision, stored, folder)
    language = read_language(folder / LANGUAGE)
    files: tuple[Path, ...] = (folder / CONFIG, folder / WEIGHTS, *language.files)
    if config.encoder:
        encoder, file = _read_shared_encoder(folder, config)
        tensors, files = {**tensors, **encoder}, (*files, file)
    shared = frozenset(tensors.keys() - stored.keys())
    if not config.language.reads_prompt:
        return CaptionerSource(config, tensors, language, None, files, shared)
    tokenizer = read_tokenizer(folder / TOKENIZER)
    return CaptionerSource(config, tensors, language, tokenizer, (*files, folder / TOKENIZER), shared)


def _read_shared_encoder(folder: Path, config: CaptionerConfig) -> tuple[dict[str, StoredTensor], Path]:
    """Return the image encoder's tensors of the model folder that a config names, and their file."""
    encoder = folder.parent / config.encoder
    sharing = f"{folder} shares the image encoder of {encoder}"
    if not (encoder / WEIGHTS).is_file():
        raise CheckpointError(f"{sharing}, which has no {WEIGHTS}. Keep the two folders beside each other.")
    tensors = select_encoder_tensors(read_folder(encoder).tensors)
    if compute_tensor_digest(tensors) != config.encoder_digest:
        raise CheckpointError(
            f"{sharing}, which is not the one that it was trained with. Get both folders anew."
        )
    return tensors, encoder / WEIGHTS


def _read_transformers_captioner(folder: Path, values: dict[str, Any]) -> CaptionerSource:
    from transformers import AutoConfig  # This import takes seconds; it fills in what the file leaves out.

    tensors, weight_files = read_transformers_tensors(folder)
    tensors, language_tensors = split_language(tensors)
    if not language_tensors:
        raise no_language_error(folder)
    try:
        theirs = AutoConfig.for_model(**values)
    except Exception as error:  # The strict dataclasses of transformers raise errors of their own kinds.
        raise CheckpointError(f"{folder / CONFIG} is not a readable BLIP-2 config: {error}") from error
    vision, former = read_encoder_configs(theirs, folder)
    ours = rename_tensors(tensors, TRANSFORMERS_CAPTIONER)
    reads_prompt = "qformer.words.weight" in ours
    tokenizer, tokenizer_file = read_language_tokenizer(folder)
    language_config = read_language_config(theirs.text_config, tokenizer, folder, reads_prompt=reads_prompt)
    config = CaptionerConfig(vision, former, language_config, TRANSFORMERS_NORM_EPS)
    files = (folder / CONFIG, *weight_files, tokenizer_file)
    language = LanguageSource(theirs.text_config, language_tensors, tokenizer, (tokenizer_file,))
    if not reads_prompt:
        return CaptionerSource(config, ours, language, None, files)
    tokenizer_folder = folder / "qformer_tokenizer"
    path = tokenizer_folder / (TOKENIZER if (tokenizer_folder / TOKENIZER).is_file() else VOCABULARY)
    if not path.is_file():
        raise CheckpointError(
            f"{tokenizer_folder} has no {TOKENIZER} and no {VOCABULARY}, which this model's Q-Former needs to read the "
            "prompt. Copy the folder again."
        )
    return CaptionerSource(config, ours, language, add_dec_token(read_tokenizer(path)), (*files, path))
