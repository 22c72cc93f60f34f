"""A checkpoint is a folder: config.json + model.safetensors + tokenizer.json.

Loading is strict: every tensor the config asks for, no other, each of its shape. Writing replaces the folder's
files one by one, the config last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_data_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from engine.blip2.config import Blip2Config
from engine.blip2.model import Model
from engine.blip2.preprocess import TextTokenizer
from engine.blip2.retriever import Retriever
from engine.errors import CheckpointError

BUNDLED = Path(__file__).parent / "pretrained"
DEFAULT = "mini"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelInfo:
    """One model on this machine. num_bytes: of its weights' file. image_size: pixels of the square it reads."""

    name: str
    folder: Path
    digest: str
    num_parameters: int
    num_bytes: int
    image_size: int


def models_folder() -> Path:
    """Where a user's own models lie, one folder each; QSEEK_MODELS overrides it."""
    given = os.environ.get("QSEEK_MODELS")
    return Path(given).expanduser() if given else user_data_path("qseek", appauthor=False) / "models"


def list_models() -> list[ModelInfo]:
    """The bundled models and the user's own, by name; one that is damaged is left out, with a logged warning.

    Folders without a config.json are no models and are passed over. Every file is read for the digest, but only
    the weights' header and the config are checked.
    """
    found = []
    for name, folder in _model_folders().items():
        try:
            found.append(_info(name, folder))
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


def _info(name: str, folder: Path) -> ModelInfo:
    config = _read_config(folder)
    if not (folder / TOKENIZER).is_file():
        raise _lacks(folder, TOKENIZER)
    with _open_weights(folder) as stored:
        sizes = [stored.get_slice(key).get_shape() for key in stored.keys()]  # noqa: SIM118 (not a dict)
    count = sum(int(torch.Size(size).numel()) for size in sizes)
    num_bytes = (folder / WEIGHTS).stat().st_size
    return ModelInfo(name, folder, digest_of(folder), count, num_bytes, config.vision.image_size)


def find_model(name: str) -> Path:
    """The folder of a model given by name or folder. Raises CheckpointError naming where it was looked for.

    A bundled model comes before the user's own of the same name, and both before a folder that is called so;
    with a separator in it ("./mini") a name is a folder.
    """
    folder = Path(os.path.expanduser(name))  # "~nobody" stays as it is
    is_path = any(separator and separator in name for separator in (os.sep, os.altsep))
    for place in [folder] if is_path else [BUNDLED / name, models_folder() / name, folder]:
        if os.path.isfile(place / CONFIG):  # False for a name that no file can have, Path.is_file raises
            return place
    if os.path.isdir(folder):
        raise CheckpointError(f"{folder} is no model: it has no {CONFIG}.")
    known = ", ".join(_model_folders()) or "none"
    raise CheckpointError(
        f"There is no model {name!r}: not among those here ({known}), not in {models_folder()}, and not a folder. "
        "`qseek models` lists what there is."
    )


def load_model(name: str = DEFAULT, *, device: str = "auto", dtype: str = "auto") -> Model:
    """Load a checkpoint by name or folder.

    device: "auto" (a GPU when there is one), "cpu", "cuda", ... dtype: "auto" (bfloat16 where the processor has
    it in hardware), "bfloat16" or "float32". Raises CheckpointError for a missing, extra, misshapen or unreadable
    tensor, naming it, and for a config or tokenizer that does not fit; ValueError for an unknown dtype.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be auto or one of {', '.join(DTYPES)}")
    folder = find_model(name)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    net, tokenizer = load_net(folder)
    known = folder.name if _model_folders().get(folder.name) == folder else str(folder.resolve())
    return Model(
        net,
        tokenizer,
        name=known,
        digest=digest_of(folder),
        folder=folder,
        device=place,
        dtype=fast_dtype(place) if dtype == "auto" else DTYPES[dtype],
    )


def load_net(folder: Path) -> tuple[Retriever, TextTokenizer]:
    """The network of a checkpoint folder as it was saved, in float32 and ready to be trained on.

    Raises CheckpointError as `load_model` does.
    """
    config = _read_config(folder)
    net = _make_net(config, folder)
    _load_weights(net, folder)
    return net, _read_tokenizer(folder, config)


def save_checkpoint(
    folder: Path, net: Retriever, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write net as a checkpoint folder; floating tensors in dtype, counters as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in net.state_dict().items()
    }
    save_file(state, folder / (WEIGHTS + ".new"))
    os.replace(folder / (WEIGHTS + ".new"), folder / WEIGHTS)
    tokenizer.save(str(folder / TOKENIZER))
    (folder / (CONFIG + ".new")).write_text(json.dumps(net.config.to_dict(), indent=1) + "\n")
    os.replace(folder / (CONFIG + ".new"), folder / CONFIG)


def digest_of(folder: Path) -> str:
    """Hex blake2b-128 of what decides the model's numbers: config, weights, tokenizer."""
    digest = hashlib.blake2b(digest_size=16)
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _lacks(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{folder} has no {name}; copy the model folder again.")


def _read_config(folder: Path) -> Blip2Config:
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not readable JSON: {error}") from error
    try:
        return Blip2Config.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"In {folder}: {error}") from error


def _make_net(config: Blip2Config, folder: Path) -> Retriever:
    former = config.qformer
    try:
        if former.width % former.num_heads:
            raise ValueError(f"width {former.width} is not a multiple of num_heads {former.num_heads}")
        if not 2 < config.max_tokens <= former.max_positions:
            raise ValueError(
                f"max_tokens {config.max_tokens} is not in 3 to max_positions {former.max_positions}"
            )
        return Retriever(config)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # values of another kind or sign, from torch and timm
        raise CheckpointError(f"{folder / CONFIG} describes no model that can be made: {error}") from error


def _read_tokenizer(folder: Path, config: Blip2Config) -> TextTokenizer:
    path = folder / TOKENIZER
    if not path.is_file():
        raise _lacks(folder, TOKENIZER)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} is not a readable tokenizer: {error}") from error
    if tokenizer.get_vocab_size() > config.qformer.vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, {CONFIG} says {config.qformer.vocab_size}."
        )
    return TextTokenizer(tokenizer, config.max_tokens)


def _open_weights(folder: Path) -> Any:
    path = folder / WEIGHTS
    if not path.is_file():
        raise _lacks(folder, WEIGHTS)
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: {error}; copy it again."
        ) from error


def _load_weights(net: Retriever, folder: Path) -> None:
    wanted = net.state_dict()
    with _open_weights(folder) as stored:
        names = set(stored.keys())
        problems = [f"missing {name}" for name in sorted(wanted.keys() - names)]
        problems += [f"unknown {name}" for name in sorted(names - wanted.keys())]
        for name in sorted(names & wanted.keys()):
            shape = tuple(stored.get_slice(name).get_shape())
            if shape != tuple(wanted[name].shape):
                problems.append(f"{name} is {shape}, should be {tuple(wanted[name].shape)}")
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise CheckpointError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {shown}.")
        with torch.no_grad():
            for name in names:
                wanted[name].copy_(stored.get_tensor(name))


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the GPU or processor has it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.bfloat16
    return torch.float32
