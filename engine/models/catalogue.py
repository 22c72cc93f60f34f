"""Find models by name: the bundled ones, the user's own, and published ones in the Hugging Face cache."""

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
from engine.checkpoints.layout import CONFIG, WEIGHT_SUFFIXES, not_a_model_folder_error
from engine.checkpoints.retrieval_reading import read_folder
from engine.errors import CheckpointError
from engine.models import hub
from engine.models.hub import compute_digest

_log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "bundled"
DEFAULT = "mini"


@dataclass(frozen=True)
class ModelInfo:
    """One model on this machine.

    num_parameters, num_bytes: size of the weights in its own folder, without a shared image encoder. image_size: side
    of the square that it reads, in pixels. writes: whether it is a captioner with a language model, which cannot
    search. encoder: name of the model beside it whose image encoder it shares, or of the package that carries its image
    encoder; "" where it has its own.
    """

    name: str
    folder: Path
    digest: str
    num_parameters: int
    num_bytes: int
    image_size: int
    writes: bool = False
    encoder: str = ""


def get_models_folder() -> Path:
    """Return the folder in which the user's own models lie, each in a folder of its own; QSEEK_MODELS overrides it."""
    given = os.environ.get("QSEEK_MODELS")
    return Path(given).expanduser() if given else user_data_path("qseek", appauthor=False) / "models"


def list_models() -> list[ModelInfo]:
    """Return the bundled models, the user's own, and the published ones that were downloaded.

    A damaged model is left out with a logged warning; a folder without config.json is no model and is passed over.
    Every file is read for the digest, but only the header of the weights and the config are checked.
    """
    models = []
    downloaded = {
        model.name: folder
        for model in published.KNOWN
        if (folder := hub.find_download(model.hub_id)) is not None
    }
    for name, folder in (_model_folders() | downloaded).items():
        try:
            source = read_captioner(folder) if has_language(folder) else read_folder(folder)
            models.append(_make_model_info(name, folder, source))
        except CheckpointError as error:
            _log.warning("The model %s is left out: %s", name, error)
    return models


def _model_folders() -> dict[str, Path]:
    """Return the folders of the user's own and the bundled models by name; a bundled one hides one of the user's."""
    folder_by_name: dict[str, Path] = {}
    for parent in (get_models_folder(), BUNDLED):
        if parent.is_dir():
            folders = [folder for folder in parent.iterdir() if folder.suffix != HALF_WRITTEN]
            folder_by_name |= {folder.name: folder for folder in folders if (folder / CONFIG).is_file()}
    return dict(sorted(folder_by_name.items()))


def _make_model_info(name: str, folder: Path, source: RetrieverSource | CaptionerSource) -> ModelInfo:
    weights = [
        path for path in source.files if path.suffix in WEIGHT_SUFFIXES and path.is_relative_to(folder)
    ]
    num_bytes = sum(path.stat().st_size for path in weights)
    num_parameters = source.num_parameters - source.num_shared_parameters
    encoder = source.config.vision.package
    writes = isinstance(source, CaptionerSource)
    if isinstance(source, CaptionerSource) and source.config.encoder:
        encoder = source.config.encoder
    digest, size = compute_digest(source.files), source.config.vision.image_size
    return ModelInfo(name, folder, digest, num_parameters, num_bytes, size, writes, encoder)


def check_model(name: str, folder: Path) -> ModelInfo:
    """Compare the name and shape of every tensor in a model folder with its config, and return what the model is.

    The language model of a captioner is not compared. No weight is read into memory. Raises CheckpointError as
    `load_model` does.
    """
    if has_language(folder):
        return _make_model_info(name, folder, read_captioner(folder))
    source = read_folder(folder)
    build_empty(source, folder)
    TextTokenizer(source.tokenizer, source.config.max_tokens)
    return _make_model_info(name, folder, source)


def find_model(name: str) -> Path:
    """Return the folder of a model that is given by its name, its folder or its Hugging Face id.

    A name is looked up among the bundled models, then among the user's own, then as a folder, then in the Hugging Face
    cache. With a separator in it ("./mini") it is a folder or an id. Raises CheckpointError that says where it was
    looked for.
    """
    folder = Path(os.path.expanduser(name))  # A home folder that does not exist ("~nobody") stays as it is.
    is_path = any(separator and separator in name for separator in (os.sep, os.altsep))
    for candidate in [folder] if is_path else [BUNDLED / name, get_models_folder() / name, folder]:
        if os.path.isfile(
            candidate / CONFIG
        ):  # It is False for a name that no file can have; Path.is_file raises.
            return candidate
    if os.path.isdir(folder):
        raise not_a_model_folder_error(folder)
    if (id_ := published.find_hub_id(name)) is not None:
        if (downloaded := hub.find_download(id_)) is None:
            raise hub.missing_download_error(id_)
        return downloaded
    known = ", ".join([*_model_folders(), *(model.name for model in published.KNOWN)])
    raise CheckpointError(
        f"There is no model {name!r}: it is none of the known ones ({known}), not in {get_models_folder()}, and not a "
        "folder. `qseek models` lists the models that there are."
    )


def has_model(name: str) -> bool:
    """Return whether a model of this name is bundled or among the user's own."""
    return name in _model_folders()


def choose_lasting_name(name: str, folder: Path) -> str:
    """Return the name by which an index finds a model's folder again: its name, Hugging Face id or absolute path."""
    if _model_folders().get(folder.name) == folder:
        return folder.name
    id_ = published.find_hub_id(name)
    return id_ if id_ is not None and hub.find_download(id_) == folder else str(folder.resolve())
