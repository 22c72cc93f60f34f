"""Find photos by describing them: `import qseek` gives a program every name that it needs.

    import qseek

    qseek.build_index(["photos"], "photos.index")
    searcher = qseek.open_index("photos.index")
    for hit in searcher.search("a red wall", top=3).hits:
        print(hit.rank, hit.photo.path, round(hit.score, 2))

    model = qseek.load_model()
    vectors, _ = model.encode_texts(["a red wall", "a blue wall"])
    print(vectors.shape)

Each name is loaded when it is first used, so that `import qseek` alone loads nothing heavy. The commands `qseek index`,
`qseek search` and so on are built from the same parts. `help(qseek.Searcher)` explains a name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.errors import (
        CheckpointError,
        DataError,
        IndexStateError,
        PhotoError,
        QseekError,
        QueryError,
        TrainingError,
    )
    from engine.index.store import Store
    from engine.models.loading import load_captioner, load_model
    from engine.pictures.opening import open_picture
    from engine.search.searcher import Searcher
    from engine.types import Caption, Failure, Hit, Photo, Results, TextHit, TextResults
    from training.losses.itc_itm_itg import itc_loss, itg_loss, itm_loss
    from ui.session import build_index, open_index

__version__ = "0.1.0"

_NAMES_BY_MODULE = {
    "engine.errors": (
        "QseekError", "CheckpointError", "DataError", "IndexStateError", "PhotoError", "QueryError", "TrainingError",
    ),
    "engine.index.store": ("Store",),
    "engine.models.loading": ("load_captioner", "load_model"),
    "engine.pictures.opening": ("open_picture",),
    "engine.search.searcher": ("Searcher",),
    "engine.types": ("Caption", "Failure", "Hit", "Photo", "Results", "TextHit", "TextResults"),
    "training.losses.itc_itm_itg": ("itc_loss", "itg_loss", "itm_loss"),
    "ui.session": ("build_index", "open_index"),
}  # fmt: skip
"""The public names that each module defines."""
_MODULE_BY_NAME = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = [
    "Caption",
    "CheckpointError",
    "DataError",
    "Failure",
    "Hit",
    "IndexStateError",
    "Photo",
    "PhotoError",
    "QseekError",
    "QueryError",
    "Results",
    "Searcher",
    "Store",
    "TextHit",
    "TextResults",
    "TrainingError",
    "build_index",
    "itc_loss",
    "itg_loss",
    "itm_loss",
    "load_captioner",
    "load_model",
    "open_index",
    "open_picture",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it, when it is first used (PEP 562)."""
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module 'qseek' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_MODULE_BY_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the names of this module, also the public names that are not loaded yet."""
    return sorted({*globals(), *__all__})
