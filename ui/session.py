"""From what a person gave, --index and --model, to an open store, a model and a searcher.

The command line and the page open everything through this file. Heavy libraries are imported inside the functions:
lancedb takes a second or two, torch as long again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import IndexStateError
from engine.index.manifest import has_index
from engine.types import Caption, Results

if TYPE_CHECKING:
    from engine.index.store import Store
    from engine.models.photo_captioners import PhotoCaptioner
    from engine.models.retrieval_model import RetrievalModel
    from engine.progress import Progress
    from engine.search.searcher import Searcher
    from indexer.index_run import RunReport


def get_default_captioner_name(folder: Path) -> str:
    """The name of what writes by default beside this index, where there is one."""
    from engine.index.manifest import Manifest
    from engine.models.photo_captioners import choose_default_captioner

    try:
        return choose_default_captioner(Manifest.load(folder).model)
    except IndexStateError:
        return choose_default_captioner()


CAPTIONER_VARIABLE = "QSEEK_CAPTION_MODEL"


def resolve_index_folder(given: Path | None) -> Path:
    """The folder of the index, absolute: the given one, else the one under the user's data folder."""
    if given is not None:
        return given.expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("qseek", appauthor=False) / "index"


def open_store(folder: Path) -> Store:
    """Raises IndexStateError: none there, damaged, or written by a newer qseek."""
    from engine.index.store import Store

    return Store.open(folder)


def keep_freed_memory() -> None:
    """Let the C library keep what one pass of a model frees for the next pass, which is then faster on a processor.

    It changes the whole process: the command line and the page call it when they start, nothing else does.
    """
    from engine.models.malloc import keep_freed_memory

    keep_freed_memory()


def load_model(name: str | None) -> RetrievalModel:
    """A model by its name or folder, the bundled one without either; raises CheckpointError."""
    from engine.models.loading import load_model

    return load_model(name) if name else load_model()


def load_photo_captioner(name: str | None, searching: RetrievalModel | None = None) -> PhotoCaptioner:
    """What writes captions, the default without a name; raises CheckpointError. searching: not loaded again."""
    from engine.models.photo_captioners import load_photo_captioner

    return load_photo_captioner(name, searching)


def choose_captioner(given: str | None, store: Store, searching: str) -> tuple[str, bool]:
    """The name of what writes captions for an index, and whether it answers questions; nothing is loaded.

    given: by a person, else what wrote most of the index's captions, else the default. Raises CheckpointError.
    """
    from engine.models.photo_captioners import choose_default_captioner, is_able_to_answer

    name = (
        given or next(iter(store.captions.count_by_captioner()), None) or choose_default_captioner(searching)
    )
    return name, is_able_to_answer(name)


def load_model_on_each_gpu(name: str | None) -> list[RetrievalModel]:
    """The same model on every GPU, on the processor where there is none; raises CheckpointError."""
    import torch

    from engine.models.catalogue import DEFAULT
    from engine.models.loading import load_model

    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["auto"]
    return [load_model(name or DEFAULT, device=device) for device in devices]


def make_searcher(store: Store | None, model: RetrievalModel, *, hold: bool = False) -> Searcher:
    """Without a store it knows no photos, and can still rerank and match those that are given.

    hold: whether more questions will come, so that what one computes of photos is held for the next. Raises
    IndexStateError when another model made the index.
    """
    from engine.search.searcher import HOLD_BYTES, Searcher

    return Searcher(store, model, hold_bytes=HOLD_BYTES if hold else 0)


def open_searcher(folder: Path, model: str | None, tell: Callable[[str], None] | None = None) -> Searcher:
    """The index with the model given, else with the one that made it. tell: called with a line where an answer takes
    long.

    Raises IndexStateError before the model is loaded when there is no index.
    """
    store = open_store(folder)
    return _telling(make_searcher(store, load_model(model or store.manifest.model)), tell)


def open_searcher_with_or_without_index(
    folder: Path, model: str | None, tell: Callable[[str], None] | None = None
) -> Searcher:
    """As `open_searcher`; where there is no index, a searcher without one."""
    if has_index(folder):
        return open_searcher(folder, model, tell)
    return _telling(make_searcher(None, load_model(model)), tell)


def open_index(folder: Path | str | None = None, *, model: str | None = None) -> Searcher:
    """Open an index, so that it can be asked.

    folder: the index, by default the one under the user's data folder. model: name or folder of the model, by default
    the one that made the index. Raises IndexStateError: there is no index, it is damaged, or another model made it.
    Raises CheckpointError: the model is not there.
    """
    return open_searcher(resolve_index_folder(None if folder is None else Path(folder)), model)


def build_index(
    photos: Iterable[Path | str], folder: Path | str | None = None, *, model: str | None = None,
    texts: Sequence[str] = (), captions: bool = False, captioner: str | None = None, workers: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunReport:  # fmt: skip
    """Index the photos in folders; run again, it reads only what has changed.

    photos: folders. folder: the index, by default the one under the user's data folder; it is made where there is none.
    model: name or folder of the model that makes it. texts: are indexed as well, so that a photo can find them.
    captions: write a caption for each photo that has none; captioner: the model that writes them. workers: processes
    that read photos, by default one for each processor, 0 for none. on_progress: called a few times a second.

    Returns what was done, with the photos that could not be read. Raises QueryError: a folder is not there or holds no
    photo. Raises IndexStateError: another model made the index, or another process writes it. Raises CheckpointError:
    the model is not there.
    """
    from indexer.index_run import IndexRun, ProgressListener, RunRequest

    request = RunRequest(
        resolve_index_folder(None if folder is None else Path(folder)),
        [Path(root).expanduser().absolute() for root in photos],
        model,
        texts=texts,
        captions=captions,
        captioner=captioner,
        workers=workers,
    )
    return IndexRun(request, load_model, load_photo_captioner, ProgressListener(on_progress)).run()


def _telling(searcher: Searcher, tell: Callable[[str], None] | None) -> Searcher:
    """Return the searcher, which calls `tell` from now on."""
    if tell is not None:
        searcher.tell = tell
    return searcher


def add_captions(results: Results, searcher: Searcher, captioner: str | None) -> Results:
    """Every hit with a caption: the index's own, but where another captioner is named; the others are written now."""
    from engine.models.photo_captioners import is_called
    from engine.search.hit_captions import add_missing_captions

    def keeps(caption: Caption) -> bool:
        return captioner is None or is_called(captioner, caption.writer)

    return add_missing_captions(results, lambda: load_photo_captioner(captioner, searcher.model), keeps)
