"""Read and write the transformers folder of a frozen language model, and make the transformers model of it.

Loading is strict: there must be every tensor of the config, no other, each of its shape. Tensors that the model ties
(the output matrix to the word embeddings) may be left out, as transformers does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from engine.blip2.config import LanguageConfig
from engine.checkpoints.checkpoint_sources import LanguageSource
from engine.checkpoints.filling import check_fits, put_tensors, without_storage
from engine.checkpoints.layout import (
    CONFIG,
    INDEX,
    TOKENIZER,
    open_checkpoint_folder,
    read_json,
    read_tokenizer,
    write_weights,
)
from engine.checkpoints.tensors import StoredTensor
from engine.checkpoints.transformers_folders import read_transformers_tensors
from engine.errors import CheckpointError

T5_POSITIONS = 512
"""Number of tokens that T5 was trained with. Its positions are relative and have no end."""


def read_language(folder: Path) -> LanguageSource:
    """Open the transformers folder of a language model with its tokenizer.

    Raises CheckpointError that says what is missing or does not fit.
    """
    from transformers import AutoConfig  # This import takes seconds.

    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} is not a language model's folder: {CONFIG} is missing. Give a folder that holds one."
        )
    values = read_json(folder / CONFIG)
    try:
        config = AutoConfig.for_model(**values)
    except Exception as error:  # Unknown types and values of another kind each raise an error of their own.
        raise CheckpointError(f"{folder / CONFIG} is not a language model's config: {error}") from error
    tensors, files = read_transformers_tensors(folder)
    tokenizer, tokenizer_file = read_language_tokenizer(folder)
    index = [folder / INDEX] if (folder / INDEX).is_file() else []
    return LanguageSource(config, tensors, tokenizer, (folder / CONFIG, *index, *files, tokenizer_file))


def read_language_tokenizer(folder: Path) -> tuple[Tokenizer, Path]:
    """Read the tokenizer of a language model's folder; return it with the file that stands for it.

    In a folder without tokenizer.json, transformers makes the tokenizer of the other files.
    """
    if (folder / TOKENIZER).is_file():
        return read_tokenizer(folder / TOKENIZER), folder / TOKENIZER
    from transformers import AutoTokenizer

    try:
        their_tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer: Tokenizer = their_tokenizer.backend_tokenizer
    except Exception as error:  # Missing files and missing libraries raise errors of many kinds.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}, and transformers cannot make one of its other files ({first}). Copy the "
            "language model's tokenizer files there."
        ) from error
    names = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", CONFIG)
    return tokenizer, next(folder / name for name in names if (folder / name).is_file())


def read_language_config(
    source_config: Any, tokenizer: Tokenizer, path: Path, *, reads_prompt: bool = False
) -> LanguageConfig:
    """Return our LanguageConfig of a language model's transformers config and tokenizer.

    The start token and, for an encoder-decoder, the end token are those that the tokenizer puts around a text, else
    those of the config; an OPT ends with a newline, as in BLIP-2. A model without a padding token is padded with its
    end token, which is masked. path: the folder, for messages. Raises CheckpointError for a model without an end token,
    and for a tokenizer of another vocabulary.
    """
    start, end, pad = _find_special_tokens(source_config, tokenizer)
    vocab_size = source_config.vocab_size
    if end is None:
        raise CheckpointError(
            f"{path}: the language model has no end-of-text token. Set eos_token_id in its {CONFIG}."
        )
    if pad is None or not 0 <= pad < vocab_size:
        pad = end
    is_too_large = tokenizer.get_vocab_size(with_added_tokens=False) > vocab_size
    if is_too_large or max(start or 0, end) >= vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.get_vocab_size():,} tokens, starts with {start} and ends with "
            f"{end}, but the language model knows {vocab_size:,} tokens: it is the tokenizer of another model."
        )
    return LanguageConfig(
        encoder_decoder=bool(source_config.is_encoder_decoder),
        width=getattr(source_config, "word_embed_proj_dim", None) or source_config.hidden_size,
        max_positions=getattr(source_config, "max_position_embeddings", None) or T5_POSITIONS,
        start_id=None if source_config.is_encoder_decoder else start,
        end_id=end,
        pad_id=pad,
        reads_prompt=reads_prompt,
    )


def _find_special_tokens(
    source_config: Any, tokenizer: Tokenizer
) -> tuple[int | None, int | None, int | None]:
    """Return the numbers of the tokens that begin a text, end it and pad it; see `read_language_config`."""
    around = tokenizer.encode("").ids
    start, end, pad = (_get_token_id(source_config, name) for name in ("bos", "eos", "pad"))
    if around and source_config.is_encoder_decoder:
        end = around[-1]
    elif around:
        start = around[0]
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    if source_config.model_type == "opt" and newline:
        end = newline[0]
    return start, end, pad


def _get_token_id(config: Any, name: str) -> int | None:
    """Return the number of a special token of a config, the first where there are several."""
    token: int | list[int] | None = getattr(config, f"{name}_token_id", None)
    return (token[0] if token else None) if isinstance(token, list) else token


def make_language(config: Any, tensors: Mapping[str, StoredTensor], path: Path, dtype: torch.dtype) -> Any:
    """Make the frozen transformers model of a config with these weights, cast to a dtype.

    path: the folder, for messages. Raises CheckpointError for a config that is no language model's, and for tensors
    that are missing, unknown or of a wrong shape.
    """
    model = make_empty_language(config, path)
    tied: dict[str, str] = model.all_tied_weights_keys
    weights = _rename_for_model(tensors, model)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    left_out = {name for name in tied if name not in weights or _is_tied_copy(weights, name, tied[name])}
    weights = {name: tensor for name, tensor in weights.items() if name not in left_out}
    check_fits({name: shape for name, shape in shapes.items() if name not in left_out}, weights, path)
    put_tensors(model, weights, dtype)
    for name in left_out:
        _tie(model, name, tied[name])
    return model.eval().requires_grad_(False)


def save_language(folder: Path, model: Any, tokenizer: Tokenizer, dtype: torch.dtype | None = None) -> None:
    """Write a language model as the transformers folder that `read_language` opens.

    dtype: the type that floating-point tensors are cast to, None to leave them as they are.
    """
    tensors = collect_untied_tensors(model)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    with open_checkpoint_folder(folder) as half:
        write_weights(half, tensors)
        tokenizer.save(str(half / TOKENIZER))
        model.config.save_pretrained(half)


def collect_untied_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a language model on the CPU, those left out that it ties to others."""
    state, tied = model.state_dict(), model.all_tied_weights_keys
    return {
        name: tensor.detach().cpu()
        for name, tensor in state.items()
        if name not in tied or tensor.data_ptr() != state[tied[name]].data_ptr()
    }


def make_empty_language(config: Any, path: Path) -> Any:
    """Build the transformers model of a config without allocating its weights. Raises CheckpointError where it
    cannot.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with without_storage():
            model = kind.from_config(config)
    except Exception as error:
        raise CheckpointError(
            f"{path}: transformers can make no language model of a {config.model_type!r} config: {error}"
        ) from error
    model.generation_config = GenerationConfig()  # The model's preferences must not mix with our options.
    return model


def _rename_for_model(tensors: Mapping[str, StoredTensor], model: Any) -> dict[str, StoredTensor]:
    """Return tensors under the model's names: published files may lack a prefix, and old LLaMA files hold a
    constant.
    """
    prefix = f"{model.base_model_prefix}."
    names = model.state_dict().keys()
    return {
        prefix + name if name not in names and prefix + name in names else name: tensor
        for name, tensor in tensors.items()
        if not name.endswith("rotary_emb.inv_freq")
    }


def _is_tied_copy(tensors: Mapping[str, StoredTensor], name: str, source: str) -> bool:
    """Return whether a tied tensor equals its source in the file; some T5 files have an output matrix of their own."""
    return source in tensors and torch.equal(tensors[name].read(), tensors[source].read())


def _tie(model: torch.nn.Module, name: str, source: str) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, model.get_parameter(source))
