"""Record which model, preprocessing and schema an index was made with, and check it whenever the index is opened."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, get_type_hints

from engine.atomic import write_file
from engine.errors import IndexStateError

FILE_NAME = "manifest.json"
PATCH_KINDS = ("none", "store", "int8")
SCHEMA = 1  # Version of the tables and of this file; raise it when an older qseek would misread them.


class IndexedModel(Protocol):
    """The properties of a model that a manifest records."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def image_size(self) -> int: ...
    @property
    def preprocessing(self) -> str: ...
    @property
    def num_queries(self) -> int: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def patch_shape(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Manifest:
    """The properties that must stay the same for the vectors of one index to be comparable.

    model: name of the model. model_digest: digest of its weights in hexadecimal. image_size: side of the square that
    the encoder reads, in pixels. preprocessing: how a picture becomes that square, in words. num_queries: Q. embed_dim:
    E. patch_shape: (P, V), the shape of a photo's patches. features: how patches are kept beside the vectors, "store"
    (float16), "int8" (with a scale for each patch) or "none". schema: version of the tables.
    """

    model: str
    model_digest: str
    image_size: int
    preprocessing: str
    num_queries: int
    embed_dim: int
    patch_shape: tuple[int, int]
    features: str = "none"
    schema: int = SCHEMA

    @property
    def patch_bytes_per_photo(self) -> int:
        """Return how many bytes the patches of one photo take; see engine/models/patch_bytes.py."""
        num_patches, width = self.patch_shape
        return {"none": 0, "store": 2 * num_patches * width, "int8": num_patches * (4 + width)}[self.features]

    @classmethod
    def for_model(cls, model: IndexedModel, features: str) -> Manifest:
        """Make the manifest of a new index from its model. features: "store", "int8" or "none"."""
        return cls(
            model=model.name,
            model_digest=model.digest,
            image_size=model.image_size,
            preprocessing=model.preprocessing,
            num_queries=model.num_queries,
            embed_dim=model.embed_dim,
            patch_shape=model.patch_shape,
            features=features,
        )

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of an index folder.

        Raises IndexStateError when there is none, when it cannot be read, and when a newer qseek wrote it.
        """
        path = Path(folder) / FILE_NAME
        try:
            values = json.loads(path.read_bytes())
            schema = values["schema"]
        except (FileNotFoundError, NotADirectoryError):
            raise IndexStateError(
                f"There is no index at {folder}. Make one with `qseek index FOLDER`, or say where it is with --index."
            ) from None
        except OSError as error:
            raise IndexStateError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged_error(path, f"{type(error).__name__}: {error}") from error
        if isinstance(schema, int) and schema > SCHEMA:
            raise IndexStateError(
                f"The index at {folder} was written by a newer qseek: its schema is {schema}, and this qseek reads "
                f"{SCHEMA}. Update qseek, or give another --index."
            )
        return _from_json(path, values)

    def save(self, folder: Path) -> None:
        """Write the manifest into an index folder; it replaces an old one in one step.

        Raises IndexStateError when it cannot be written; the old one is then still there.
        """
        path = Path(folder) / FILE_NAME
        try:
            write_file(path, json.dumps(asdict(self), indent=1))
        except OSError as error:
            raise IndexStateError(f"{path} cannot be written: {error.strerror}.") from error

    def check_same(self, other: Manifest) -> None:
        """Compare this manifest of an index with the one that the model at hand would make (other).

        Raises IndexStateError that names both values when vectors of the two cannot be mixed. How the patches are kept
        does not matter.
        """
        names = ("model_digest", "preprocessing", "image_size", "num_queries", "embed_dim", "patch_shape")
        different = [name for name in names if getattr(self, name) != getattr(other, name)]
        if different:
            name = different[0]
            raise IndexStateError(
                f"The index was made with model {self.model}, {_word_name(name)} {_word_value(getattr(self, name))}; "
                f"this is model {other.model}, {_word_name(name)} {_word_value(getattr(other, name))}. Index again "
                "with `qseek index --reindex`, or give another --index."
            )


def has_index(folder: Path) -> bool:
    """Return whether an index was begun in a folder."""
    return (Path(folder) / FILE_NAME).exists()


def _from_json(path: Path, values: dict[str, Any]) -> Manifest:
    kinds = get_type_hints(Manifest)
    if set(values) != set(kinds):
        names = ", ".join(sorted(set(values) ^ set(kinds)))
        raise _damaged_error(path, f"missing or unknown: {names}")
    shape = values["patch_shape"]
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(side, int) for side in shape)):
        raise _damaged_error(path, f"patch_shape is {shape!r}")
    if values["features"] not in PATCH_KINDS:
        raise _damaged_error(path, f"features is {values['features']!r}")
    for name, kind in kinds.items():
        if isinstance(kind, type) and kind in (str, int) and not isinstance(values[name], kind):
            raise _damaged_error(path, f"{name} is {values[name]!r}")
    return Manifest(**{**values, "patch_shape": (shape[0], shape[1])})


def _damaged_error(path: Path, reason: str) -> IndexStateError:
    return IndexStateError(
        f"{path} is damaged ({reason}). Restore it, or index again with `qseek index --reindex`."
    )


def _word_name(name: str) -> str:
    return name.replace("model_", "").replace("_", " ")


def _word_value(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)
