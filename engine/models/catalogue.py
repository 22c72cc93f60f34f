"""Models by name: those that are bundled, the user's own, and the known ones in the Hugging Face cache."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_data_path

from engine.atomic import HALF_WRITTEN
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints import published
from engine.checkpoints.building import build_empty
from engine.checkpoints.captioner_reading import has_language, read_captioner
from engine.checkpoints.checkpoint_sources import CaptionerSource, RetrieverSource
from engine.checkpoints.layout import CONFIG, WEIGHT_SUFFIXES
from engine.checkpoints.retrieval_reading import read_folder
from engine.errors import CheckpointError
from engine.models import hub
from engine.models.hub import digest_of

_log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "bundled"
DEFAULT = "mini"


@dataclass(frozen=True)
class ModelInfo:
    """One model on this machine.

    num_parameters, num_bytes: of the weights in its own folder, a shared image encoder not counted. image_size: pixels
    of the square it reads. writes: whether it is a generative one, with a language model, which cannot search. encoder:
    name of the model beside it whose image encoder it shares, "" for one that has its own.
    """

    name: str
    folder: Path
    digest: str
    num_parameters: int
    num_bytes: int
    image_size: int
    writes: bool = False
    encoder: str = ""


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
        model.name: folder for model in published.KNOWN if (folder := hub.cached(model.hub_id)) is not None
    }
    for name, folder in (_model_folders() | downloaded).items():
        try:
            source = read_captioner(folder) if has_language(folder) else read_folder(folder)
            found.append(_model_info(name, folder, source))
        except CheckpointError as error:
            _log.warning("the model %s is left out: %s", name, error)
    return found


def _model_folders() -> dict[str, Path]:
    """By name; a bundled model hides one of the same name among the user's own, as in `find_model`."""
    found: dict[str, Path] = {}
    for place in (models_folder(), BUNDLED):
        if place.is_dir():
            folders = [folder for folder in place.iterdir() if folder.suffix != HALF_WRITTEN]
            found |= {folder.name: folder for folder in folders if (folder / CONFIG).is_file()}
    return dict(sorted(found.items()))


def _model_info(name: str, folder: Path, source: RetrieverSource | CaptionerSource) -> ModelInfo:
    weights = [
        path for path in source.files if path.suffix in WEIGHT_SUFFIXES and path.is_relative_to(folder)
    ]
    num_bytes = sum(path.stat().st_size for path in weights)
    num_parameters, encoder = source.num_parameters, ""
    writes = isinstance(source, CaptionerSource)
    if isinstance(source, CaptionerSource):
        num_parameters -= source.num_shared_parameters
        encoder = source.config.encoder
    digest, size = digest_of(source.files), source.config.vision.image_size
    return ModelInfo(name, folder, digest, num_parameters, num_bytes, size, writes, encoder)


def check_model(name: str, folder: Path) -> ModelInfo:
    """What `list_models` says of one folder, after every tensor's name and shape was held against the config's (of a
    captioning model, the language model's apart).

    No weight is read into memory. Raises CheckpointError as `load_model` does.
    """
    if has_language(folder):
        return _model_info(name, folder, read_captioner(folder))
    source = read_folder(folder)
    build_empty(source, folder)
    TextTokenizer(source.tokenizer, source.config.max_tokens)
    return _model_info(name, folder, source)


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
    if (id_ := published.hub_id(name)) is not None:
        if (downloaded := hub.cached(id_)) is None:
            raise hub.not_here(id_)
        return downloaded
    known = ", ".join([*_model_folders(), *(model.name for model in published.KNOWN)])
    raise CheckpointError(
        f"There is no model {name!r}: not among the known ones ({known}), not in {models_folder()}, and not a folder. "
        "`qseek models` lists what there is."
    )


def has_model(name: str) -> bool:
    """Whether a model of this name is bundled or among the user's own."""
    return name in _model_folders()


def lasting_name(name: str, folder: Path) -> str:
    """What an index remembers to find the folder again: its name, its Hugging Face id, or its absolute path."""
    if _model_folders().get(folder.name) == folder:
        return folder.name
    id_ = published.hub_id(name)
    return id_ if id_ is not None and hub.cached(id_) == folder else str(folder.resolve())
