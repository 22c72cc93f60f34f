"""Where a generative (stage 2) checkpoint comes from: our folder, a transformers folder, or LAVIS files.

Ours is a checkpoint folder with the language model in `language/`, a transformers folder of its own. transformers keeps
both in one; LAVIS leaves the language model out, so its folder is given beside the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.blip2.config import CaptionerConfig
from engine.blip2.convert import LAVIS_CAPTIONER, TRANSFORMERS_CAPTIONER, Stored, renamed, split_language
from engine.blip2.hub import KNOWN
from engine.blip2.language import LanguageSource, describe_language, language_tokenizer, read_language
from engine.blip2.meta import digest_of_tensors
from engine.blip2.sources import (
    CONFIG,
    TOKENIZER,
    TRANSFORMERS_NORM_EPS,
    VOCABULARY,
    WEIGHTS,
    at_image_size,
    encoder_configs,
    lavis_configs,
    read_json,
    read_pickled,
    read_safetensors,
    read_tokenizer,
    transformers_tensors,
    with_dec,
    with_encoder,
)
from engine.errors import CheckpointError

LANGUAGE = "language"
PUBLISHED = (*(model.hub_id for model in KNOWN if model.writes), "Salesforce/instructblip-vicuna-7b")


@dataclass(frozen=True)
class CaptionerSource:
    """config: what to build. tensors: all but the language model's, under our names. tokenizer: of a Q-Former that
    reads the prompt, None of another. files: what decides the model's numbers."""

    config: CaptionerConfig
    tensors: Mapping[str, Stored]
    language: LanguageSource
    tokenizer: Tokenizer | None
    files: tuple[Path, ...]

    @property
    def num_parameters(self) -> int:
        tensors = [*self.tensors.values(), *self.language.tensors.values()]
        return sum(math.prod(tensor.shape) for tensor in tensors)


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


def _shared_encoder(folder: Path, config: CaptionerConfig) -> tuple[dict[str, Stored], Path]:
    """The image encoder's tensors of the model beside `folder` that config names, and their file."""
    place = folder.parent / config.encoder
    said = f"{folder} shares the image encoder of {place}"
    if not (place / WEIGHTS).is_file():
        raise CheckpointError(f"{said}, which has no {WEIGHTS}; keep the two folders beside each other.")
    tensors = encoder_tensors(read_safetensors(place / WEIGHTS))
    if digest_of_tensors(tensors) != config.encoder_digest:
        raise CheckpointError(f"{said}, and that is another one than it was trained with; get both anew.")
    return tensors, place / WEIGHTS


def encoder_tensors(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Those of the image encoder."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith("vision.")}


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


def read_lavis_captioner(
    path: Path,
    language_folder: Path,
    *,
    vocabulary: Tokenizer | None = None,
    encoder: Path | None = None,
    image_size: int | None = None,
) -> CaptionerSource:
    """A LAVIS stage-2 or caption fine-tuned file, with the language model's transformers folder.

    vocabulary: bert-base-uncased, for a Q-Former that reads the prompt. encoder, image_size: see `sources.read_lavis`.
    Raises CheckpointError: not such a file, no encoder, another language model than it was trained with.
    """
    theirs, words = split_language(read_pickled(path))
    projections = {f"{name}_proj.weight" for name in ("opt", "t5", "llm")} & theirs.keys()
    if "query_tokens" not in theirs or not projections:
        raise CheckpointError(
            f"{path} is no generative (stage 2) BLIP-2: it has no query_tokens, or no projection to a language model."
        )
    theirs, files = with_encoder(theirs, path, encoder)
    ours = renamed(theirs, LAVIS_CAPTIONER)
    vision, former = lavis_configs(ours, path)
    reads_prompt = "qformer.words.weight" in ours
    if reads_prompt and vocabulary is None:
        raise CheckpointError(
            f"{path} has a Q-Former that reads the prompt; give bert-base-uncased's vocabulary with --vocabulary."
        )
    if image_size is not None:
        vision = at_image_size(ours, vision, image_size)
    language = read_language(language_folder)
    if language.config.model_type == "t5":
        language.config.dense_act_fn = "gelu"  # LAVIS overwrites Flan-T5's approximation
    if words:
        language = replace(language, tensors=words)
    about = describe_language(language.config, language.tokenizer, language_folder, reads_prompt=reads_prompt)
    if "llm_proj.weight" in projections:
        about = replace(about, start_id=about.end_id)  # LAVIS has Vicuna's texts begin with </s>, too
    width = ours["projection.weight"].shape[0]
    if width != about.width:
        raise CheckpointError(
            f"{path} was trained with a language model of width {width}; the one in {language_folder} has "
            f"{about.width}: give the one that its name says."
        )
    tokenizer = with_dec(vocabulary) if reads_prompt and vocabulary is not None else None
    config = CaptionerConfig(vision, former, about)
    return CaptionerSource(config, ours, language, tokenizer, (*files, *language.files))
