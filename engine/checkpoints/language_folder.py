"""The transformers folder of a frozen language model: read, written, and turned into the transformers model itself.

Loading is strict: every tensor that the config asks for, no other, each of its shape. Tensors that the model ties (the
output matrix to the word embeddings) may be left out, as transformers leaves them out.
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
    read_json,
    read_tokenizer,
    whole_folder,
    write_weights,
)
from engine.checkpoints.tensors import StoredTensor
from engine.checkpoints.transformers_folders import transformers_tensors
from engine.errors import CheckpointError

T5_POSITIONS = 512
"""Its positions are relative and have no end; it was trained with so many tokens."""


def read_language(folder: Path) -> LanguageSource:
    """A transformers folder of a language model with its tokenizer. Raises CheckpointError saying what is missing."""
    from transformers import AutoConfig  # late: seconds

    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is no language model: it has no {CONFIG}.")
    values = read_json(folder / CONFIG)
    try:
        config = AutoConfig.for_model(**values)
    except Exception as error:  # unknown types, values of another kind: each has its own exception
        raise CheckpointError(f"{folder / CONFIG} is not a language model's config: {error}") from error
    tensors, files = transformers_tensors(folder)
    tokenizer, tokenizer_file = language_tokenizer(folder)
    index = [folder / INDEX] if (folder / INDEX).is_file() else []
    return LanguageSource(config, tensors, tokenizer, (folder / CONFIG, *index, *files, tokenizer_file))


def language_tokenizer(folder: Path) -> tuple[Tokenizer, Path]:
    """tokenizer.json, or what transformers makes of a folder without one; and a file that stands for it."""
    if (folder / TOKENIZER).is_file():
        return read_tokenizer(folder / TOKENIZER), folder / TOKENIZER
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer: Tokenizer = made.backend_tokenizer
    except Exception as error:  # missing files, missing libraries
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}, and transformers cannot make one of its other files ({first}); copy the "
            "language model's tokenizer files there."
        ) from error
    names = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", CONFIG)
    return tokenizer, next(folder / name for name in names if (folder / name).is_file())


def describe_language(
    source_config: Any, tokenizer: Tokenizer, where: Path, *, reads_prompt: bool = False
) -> LanguageConfig:
    """What stage 2 must know of a language model.

    The start and, for an encoder-decoder, the end are what its tokenizer puts around a text, else what its config says;
    an OPT ends with a newline (BLIP-2). A model without a padding token is padded with its end: padding is masked.
    Raises CheckpointError for one without an end, or a tokenizer of another vocabulary.
    """
    start, end, pad = _special_tokens(source_config, tokenizer)
    vocab_size = source_config.vocab_size
    if end is None:
        raise CheckpointError(
            f"{where}: the language model has no end-of-text token; set eos_token_id in its {CONFIG}."
        )
    if pad is None or not 0 <= pad < vocab_size:
        pad = end
    is_too_large = tokenizer.get_vocab_size(with_added_tokens=False) > vocab_size
    if is_too_large or max(start or 0, end) >= vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {tokenizer.get_vocab_size():,} tokens, starts with {start} and ends with "
            f"{end}, but the language model knows {vocab_size:,}: it is another model's."
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


def _special_tokens(source_config: Any, tokenizer: Tokenizer) -> tuple[int | None, int | None, int | None]:
    """Return the numbers of the tokens that begin a text, end it and pad it; see `describe_language`."""
    around = tokenizer.encode("").ids
    start, end, pad = (_token(source_config, name) for name in ("bos", "eos", "pad"))
    if around and source_config.is_encoder_decoder:
        end = around[-1]
    elif around:
        start = around[0]
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    if source_config.model_type == "opt" and newline:
        end = newline[0]
    return start, end, pad


def _token(config: Any, name: str) -> int | None:
    """A special token's number, the first of several."""
    token: int | list[int] | None = getattr(config, f"{name}_token_id", None)
    return (token[0] if token else None) if isinstance(token, list) else token


def make_language(config: Any, tensors: Mapping[str, StoredTensor], where: Path, dtype: torch.dtype) -> Any:
    """The transformers model of a config, with these weights, frozen, in dtype.

    Raises CheckpointError for one that is no language model, and naming missing, unknown and misshapen tensors.
    """
    model = empty_language(config, where)
    tied: dict[str, str] = model.all_tied_weights_keys
    given = _under_model_names(tensors, model)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    left_out = {name for name in tied if name not in given or _equal(given, name, tied[name])}
    given = {name: tensor for name, tensor in given.items() if name not in left_out}
    check_fits({n: s for n, s in wanted.items() if n not in left_out}, given, where)
    put_tensors(model, given, dtype)
    for name in left_out:
        _share(model, name, tied[name])
    return model.eval().requires_grad_(False)


def save_language(folder: Path, model: Any, tokenizer: Tokenizer, dtype: torch.dtype | None = None) -> None:
    """Write a language model as the transformers folder that `read_language` reads; in dtype, or as it is."""
    tensors = untied_state(model)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    with whole_folder(folder) as half:
        write_weights(half, tensors)
        tokenizer.save(str(half / TOKENIZER))
        model.config.save_pretrained(half)


def untied_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a language model on the CPU, those left out that it ties to others."""
    state, tied = model.state_dict(), model.all_tied_weights_keys
    return {
        name: tensor.detach().cpu()
        for name, tensor in state.items()
        if name not in tied or tensor.data_ptr() != state[tied[name]].data_ptr()
    }


def empty_language(config: Any, where: Path) -> Any:
    """The same without weights."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with without_storage():
            model = kind.from_config(config)
    except Exception as error:
        raise CheckpointError(
            f"{where}: transformers makes no language model of a {config.model_type!r} config: {error}"
        ) from error
    model.generation_config = GenerationConfig()  # its own preferences must not mix with ours
    return model


def _under_model_names(tensors: Mapping[str, StoredTensor], model: Any) -> dict[str, StoredTensor]:
    """Published files of the bare model lack its prefix; old LLaMA files hold a constant."""
    prefix = f"{model.base_model_prefix}."
    names = model.state_dict().keys()
    return {
        prefix + name if name not in names and prefix + name in names else name: tensor
        for name, tensor in tensors.items()
        if not name.endswith("rotary_emb.inv_freq")
    }


def _equal(tensors: Mapping[str, StoredTensor], name: str, source: str) -> bool:
    """Whether a file holds a tied tensor twice. T5's kin has an output matrix of its own where transformers ties it."""
    return source in tensors and torch.equal(tensors[name].read(), tensors[source].read())


def _share(model: torch.nn.Module, name: str, source: str) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, model.get_parameter(source))
