"""A checkpoint is a folder: config.json + model.safetensors + tokenizer.json.

Loading is strict: every tensor the config asks for, no other, each of its shape. Writing replaces the folder's
files one by one, the config last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_data_path
from safetensors.torch import save_file
from tokenizers import Tokenizer

from engine.blip2 import hub
from engine.blip2.allocator import keep_freed_memory
from engine.blip2.caption_sources import CaptionerSource, has_language, read_captioner
from engine.blip2.config import Blip2Config
from engine.blip2.hub import published_sha256, sha256
from engine.blip2.meta import check_fits, put_tensors, without_storage
from engine.blip2.model import Model
from engine.blip2.preprocess import TextTokenizer
from engine.blip2.retriever import Retriever
from engine.blip2.sources import CONFIG, TOKENIZER, WEIGHTS, Source, read_folder
from engine.blip2.vision import has_batch_norms
from engine.errors import CheckpointError

BUNDLED = Path(__file__).parent / "pretrained"
DEFAULT = "mini"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelInfo:
    """One model on this machine. num_bytes: of its weights' files. image_size: pixels of the square it reads. writes:
    whether it is a generative one, with a language model, which cannot search."""

    name: str
    folder: Path
    digest: str
    num_parameters: int
    num_bytes: int
    image_size: int
    writes: bool = False


def models_folder() -> Path:
    """Where a user's own models lie, one folder each; QSEEK_MODELS overrides it."""
    given = os.environ.get("QSEEK_MODELS")
    return Path(given).expanduser() if given else user_data_path("qseek", appauthor=False) / "models"


def list_models() -> list[ModelInfo]:
    """The bundled models, the user's own and the known ones in the Hugging Face cache; a damaged one is left out, with
    a logged warning.

    Folders without a config.json are no models and are passed over. Every file is read for the digest, but only
    the weights' header and the config are checked.
    """
    found = []
    downloaded = {
        model.name: folder for model in hub.KNOWN if (folder := hub.cached(model.hub_id)) is not None
    }
    for name, folder in (_model_folders() | downloaded).items():
        try:
            source = read_captioner(folder) if has_language(folder) else read_folder(folder)
            found.append(_describe(name, folder, source))
        except CheckpointError as error:
            _log.warning("the model %s is left out: %s", name, error)
    return found


def _model_folders() -> dict[str, Path]:
    """By name; a bundled model hides one of the same name among the user's own, as in `find_model`."""
    found: dict[str, Path] = {}
    for place in (models_folder(), BUNDLED):
        if place.is_dir():
            found |= {folder.name: folder for folder in place.iterdir() if (folder / CONFIG).is_file()}
    return dict(sorted(found.items()))


def _describe(name: str, folder: Path, source: Source | CaptionerSource) -> ModelInfo:
    num_bytes = sum(path.stat().st_size for path in source.files if path.suffix in WEIGHT_SUFFIXES)
    digest, size = digest_of(source.files), source.config.vision.image_size
    writes = isinstance(source, CaptionerSource)
    return ModelInfo(name, folder, digest, source.num_parameters, num_bytes, size, writes)


def check_model(name: str, folder: Path) -> ModelInfo:
    """What `list_models` says of one folder, after every tensor's name and shape was held against the config's (of a
    captioning model, the language model's apart).

    No weight is read into memory. Raises CheckpointError as `load_model` does.
    """
    if has_language(folder):
        return _describe(name, folder, read_captioner(folder))
    source = read_folder(folder)
    _fitting_net(source, folder)
    TextTokenizer(source.tokenizer, source.config.max_tokens)
    return _describe(name, folder, source)


def find_model(name: str) -> Path:
    """The folder of a model given by name, folder or Hugging Face id.

    A bundled model comes before the user's own of the same name, both before a folder that is called so, and that
    before the Hugging Face cache; with a separator in it ("./mini") a name is a folder or an id. Raises CheckpointError
    naming where it was looked for.
    """
    folder = Path(os.path.expanduser(name))  # "~nobody" stays as it is
    is_path = any(separator and separator in name for separator in (os.sep, os.altsep))
    for place in [folder] if is_path else [BUNDLED / name, models_folder() / name, folder]:
        if os.path.isfile(place / CONFIG):  # False for a name that no file can have, Path.is_file raises
            return place
    if os.path.isdir(folder):
        raise CheckpointError(f"{folder} is no model: it has no {CONFIG}.")
    if (id_ := hub.hub_id(name)) is not None:
        if (downloaded := hub.cached(id_)) is None:
            raise hub.not_here(id_)
        return downloaded
    known = ", ".join([*_model_folders(), *(model.name for model in hub.KNOWN)])
    raise CheckpointError(
        f"There is no model {name!r}: not among the known ones ({known}), not in {models_folder()}, and not a folder. "
        "`qseek models` lists what there is."
    )


def has_model(name: str) -> bool:
    """Whether a model of this name is bundled or among the user's own."""
    return name in _model_folders()


def load_model(name: str = DEFAULT, *, device: str = "auto", dtype: str = "auto") -> Model:
    """Load a checkpoint by name or folder.

    device: "auto" (a GPU when there is one), "cpu", "cuda", ... dtype: "auto" (bfloat16 where the processor has
    it in hardware), "bfloat16" or "float32". Raises CheckpointError for a missing, extra, misshapen or unreadable
    tensor, naming it, and for a config or tokenizer that does not fit; ValueError for an unknown dtype.
    """
    place, wanted = where_and_how(device, dtype)
    folder = find_model(name)
    source = read_folder(folder)
    net = make_net(source, folder, wanted)
    return Model(
        net,
        TextTokenizer(source.tokenizer, source.config.max_tokens),
        name=lasting_name(name, folder),
        digest=digest_of(source.files),
        folder=folder,
        device=place,
        dtype=wanted,
    )


def where_and_how(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """What "auto" means on this machine, which is made ready for it; see `load_model`."""
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be auto or one of {', '.join(DTYPES)}")
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if place.type == "cpu":
        keep_freed_memory()
    return place, fast_dtype(place) if dtype == "auto" else DTYPES[dtype]


def lasting_name(name: str, folder: Path) -> str:
    """What an index remembers to find the folder again: its name, its Hugging Face id, or its absolute path."""
    if _model_folders().get(folder.name) == folder:
        return folder.name
    id_ = hub.hub_id(name)
    return id_ if id_ is not None and hub.cached(id_) == folder else str(folder.resolve())


def load_net(folder: Path) -> tuple[Retriever, TextTokenizer]:
    """The network of a checkpoint folder as it was saved, in float32 and ready to be trained on.

    Raises CheckpointError as `load_model` does.
    """
    source = read_folder(folder)
    return make_net(source, folder, torch.float32), TextTokenizer(source.tokenizer, source.config.max_tokens)


def make_net(source: Source, where: Path, dtype: torch.dtype) -> Retriever:
    """The network with the source's weights, each read and cast by itself: never two copies in memory.

    dtype: of the floating tensors; an encoder with batch norms stays float32, to be folded before it is cast.
    """
    net = _fitting_net(source, where)
    if has_batch_norms(net):
        dtype = torch.float32
    check_memory(source.num_parameters * dtype.itemsize, where)
    put_tensors(net, source.tensors, dtype)
    return net


def _fitting_net(source: Source, where: Path) -> Retriever:
    """The empty network of the source's config. Raises CheckpointError when its tensors do not fit it."""
    net = _empty_net(source.config, where)
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    check_fits(wanted, source.tensors, where)
    return net


def check_memory(num_bytes: int, where: Path) -> None:
    """Raises CheckpointError, before anything is loaded, when the weights do not fit into what is free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return  # not Linux: nothing to go by
    if num_bytes > free:
        raise CheckpointError(
            f"{where} needs {num_bytes / 2**30:.1f} GiB of memory for its weights, {free / 2**30:.1f} GiB are free; "
            "close other programs, or use a smaller model (`qseek models` lists them)."
        )


def save_checkpoint(
    folder: Path, net: Retriever, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write net as a checkpoint folder; floating tensors in dtype, counters as they are."""
    write_folder(folder, cast_floats(net.state_dict(), dtype), tokenizer, net.config.to_dict())


def cast_floats(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating tensors in dtype, counters as they are."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


def write_folder(
    folder: Path, state: Mapping[str, torch.Tensor], tokenizer: Tokenizer | None, config: Mapping[str, Any]
) -> None:
    """Replace a folder's files one by one, each whole, the config last. tokenizer: None where no text is read."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(
        tensors, folder / (WEIGHTS + ".new"), metadata={"format": "pt"}
    )  # transformers asks for the format
    os.replace(folder / (WEIGHTS + ".new"), folder / WEIGHTS)
    if tokenizer is not None:
        tokenizer.save(str(folder / TOKENIZER))
    (folder / (CONFIG + ".new")).write_text(json.dumps(config, indent=1) + "\n")
    os.replace(folder / (CONFIG + ".new"), folder / CONFIG)


def digest_of(files: Sequence[Path]) -> str:
    """Hex blake2b-128 of the SHA-256 of the files that decide a model's numbers (`Source.files`)."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(bytes.fromhex(published_sha256(path) or sha256(path)))
    return digest.hexdigest()


def _empty_net(config: Blip2Config, folder: Path) -> Retriever:
    """The network without weights: parameters take no memory, buffers are there."""
    former = config.qformer
    try:
        if former.width % former.num_heads:
            raise ValueError(f"width {former.width} is not a multiple of num_heads {former.num_heads}")
        if not 2 < config.max_tokens <= former.max_positions:
            raise ValueError(
                f"max_tokens {config.max_tokens} is not in 3 to max_positions {former.max_positions}"
            )
        with without_storage():
            return Retriever(config)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # values of another kind or sign, from torch and timm
        raise CheckpointError(f"{folder / CONFIG} describes no model that can be made: {error}") from error


def dtype_name(dtype: torch.dtype) -> str:
    """As people write it: bfloat16."""
    return str(dtype).removeprefix("torch.")


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the GPU or processor has it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.bfloat16
    return torch.float32
